"""How many connections a listener has, from where, and until when each may wait for its client."""

import asyncio
import ipaddress
from collections import Counter
from dataclasses import dataclass
from typing import Protocol

from service.settings import Settings

SWEEP_S = 0.5
"""Time between looks at the deadlines."""
_PER_NETWORK_BITS = 64
"""Of an IPv6 address: one client has all addresses below them."""


class Deadlined(Protocol):
    """A connection as its listener sees it."""

    loop: asyncio.AbstractEventLoop
    deadline: float
    """Time of the loop at which it expires."""

    def expire(self, now: float) -> None:
        """Close: the deadline is past."""
        ...


@dataclass(frozen=True)
class Limits:
    """What one listener allows; 0 connections `per_address` means as many as in all."""

    connections: int
    per_address: int
    head_timeout_s: float
    receive_timeout_s: float
    stream_timeout_s: float

    @classmethod
    def of(cls, settings: Settings) -> "Limits":
        """Return the limits of the API's listener."""
        return cls(
            connections=settings.connections,
            per_address=settings.connections_per_address,
            head_timeout_s=settings.head_timeout_s,
            receive_timeout_s=settings.receive_timeout_s,
            stream_timeout_s=settings.stream_timeout_s,
        )


class Connections:
    """The open connections of one listener."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._open: dict[Deadlined, str] = {}
        self._of_network: Counter[str] = Counter()
        self._sweeping = False

    def admit(self, connection: Deadlined, address: str) -> bool:
        """Count a new connection, if there is room for it."""
        network = network_of(address)
        most = self.limits.per_address or self.limits.connections
        if len(self._open) >= self.limits.connections or self._of_network[network] >= most:
            return False
        self._open[connection] = network
        self._of_network[network] += 1
        if not self._sweeping:
            self._sweeping = True
            connection.loop.call_later(SWEEP_S, self._sweep, connection.loop)
        return True

    def forget(self, connection: Deadlined) -> None:
        """Make room again."""
        network = self._open.pop(connection, None)
        if network is None:
            return
        self._of_network[network] -= 1
        if not self._of_network[network]:
            del self._of_network[network]

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close what is past its deadline; come again while anything is open."""
        now = loop.time()
        for connection in [one for one in self._open if one.deadline <= now]:
            connection.expire(now)
        self._sweeping = bool(self._open)
        if self._sweeping:
            loop.call_later(SWEEP_S, self._sweep, loop)


def network_of(address: str) -> str:
    """Return what is counted as one client: an IPv4 address, or a /64 network of IPv6."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return ""  # a unix socket has none
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, _PER_NETWORK_BITS), strict=False))
