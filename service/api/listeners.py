"""The two listeners of the API process: everybody's, and a small one for probes.

Both are of one uvicorn server, so they start and stop together; each has limits of its own, so
that a flood on the first leaves the second free.
"""

import asyncio
import logging
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.config import STARTUP_FAILURE

from service.api.connections import Limits
from service.api.edge import edge_protocol
from service.settings import Settings

STOP_S = 5
"""Longest wait for open requests when the process is told to stop."""
PROBE_CONNECTIONS = 32
"""Most connections of the listener for probes; they are few and trusted, so none is shut out."""


class EdgeServer(uvicorn.Server):
    """uvicorn's server with a second listener."""

    def __init__(
        self,
        main: uvicorn.Config,
        probes: uvicorn.Config | None,
        *,
        end_waiting: Callable[[], object],
    ) -> None:
        """Prepare.

        Args:
            main: of everybody's listener.
            probes: of the second one.
            end_waiting: ends what would go on for long, when the process is told to stop.
        """
        super().__init__(main)
        self._probes = probes
        self._end_waiting = end_waiting

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Bind the probes' port, start the app and its port, then answer probes."""
        listener = None if self._probes is None else await self._bound(self._probes)
        await super().startup(sockets)
        if listener is not None:
            await listener.start_serving()
            self.servers.append(listener)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let requests that only wait come to an end, then those that work."""
        self._end_waiting()
        await super().shutdown(sockets)

    async def _bound(self, probes: uvicorn.Config) -> asyncio.Server:
        """Return a listener that does not accept yet; a port that is taken ends the process."""
        probes.load()
        protocol: Any = probes.http_protocol_class  # uvicorn's type hides what it takes
        try:
            return await asyncio.get_running_loop().create_server(
                lambda: protocol(config=probes, server_state=self.server_state, app_state={}),
                host=probes.host,
                port=probes.port,
                start_serving=False,
            )
        except OSError as error:
            logging.getLogger("uvicorn.error").error(error)  # noqa: TRY400  as uvicorn does for the other
            sys.exit(STARTUP_FAILURE)


def server_of(
    app: ASGIApp, probes: ASGIApp, settings: Settings, *, end_waiting: Callable[[], object] = bool
) -> EdgeServer:
    """Return the server of an app, and of its probes if they have a port.

    Args:
        app: of everybody's listener.
        probes: of the second one.
        settings: where to listen, and its limits.
        end_waiting: as for `EdgeServer`.
    """
    limits = Limits.of(settings)
    main = _config(app, settings.host, settings.port, limits)
    if not settings.probe_port:
        return EdgeServer(main, None, end_waiting=end_waiting)
    few = replace(limits, connections=PROBE_CONNECTIONS, per_address=0)
    second = _config(probes, settings.probe_host, settings.probe_port, few)
    return EdgeServer(main, second, end_waiting=end_waiting)


def _config(app: ASGIApp, host: str, port: int, limits: Limits) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=edge_protocol(limits),
        ws="none",
        loop="asyncio",
        log_config=None,
        log_level="error",  # its warnings are one a request: whoever sends them fills the disk
        access_log=False,
        proxy_headers=False,  # X-Forwarded-For may be written by anybody
        server_header=False,
        timeout_graceful_shutdown=STOP_S,
    )
