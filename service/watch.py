"""`levit watch`: what a service does, as it does it, on a terminal of 80 columns.

A picture is made of what is known (`Seen`), and what is known is renewed once a second; a service
that is away leaves the last of it standing. Events come by themselves, on a connection of theirs.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from service.client import ApiError, AsyncClient, Event
from service.shown import cell, printable

EVERY_S = 1.0
ANSWER_S = 3.0
"""Longest wait for one answer."""
EVENTS_S = 0.5
"""How long a single picture waits for past events."""
EVENTS, MOST_EXPERTS = 5, 12
"""Shown of each, the newest."""
RATE_S = 15.0
"""Time over which samples a second are reckoned."""
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(slots=True)
class Seen:
    """What is known of one stream of a service."""

    url: str
    stream: str
    model: Mapping[str, Any] = field(default_factory=dict)
    """As GET /experts shows it."""
    gauges: Mapping[str, float] = field(default_factory=dict)
    """Metrics by name; empty where the key may not see them."""
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=EVENTS))
    accuracies: deque[float] = field(default_factory=lambda: deque(maxlen=60))
    """Prequential accuracy of each model that was seen, oldest first."""
    learned: deque[tuple[float, int]] = field(default_factory=deque)
    """When how many samples were learned, over the last `RATE_S`."""
    away_since: float | None = None
    """Since when nothing was answered, Unix seconds."""
    problem: str | None = None
    """Why nothing was answered."""

    def renew(self, model: Mapping[str, Any], gauges: Mapping[str, float], now: float) -> None:
        """Take in what was just answered."""
        accuracy = model.get("prequential_accuracy")
        if accuracy is not None and model["model_version"] != self.model.get("model_version"):
            self.accuracies.append(accuracy)
        self.model, self.gauges = model, gauges
        self.away_since = self.problem = None
        self.learned.append((now, model["samples_learned"]))
        while now - self.learned[0][0] > RATE_S:
            self.learned.popleft()

    def lose(self, refusal: ApiError, now: float) -> None:
        """Take in that nothing was answered."""
        self.away_since = self.away_since or now
        self.problem = refusal.message

    @property
    def rate(self) -> float | None:
        """Samples learned a second, of late."""
        (first_at, first), (last_at, last) = self.learned[0], self.learned[-1]
        return (last - first) / (last_at - first_at) if last_at > first_at else None


# What is seen as a picture


def picture(seen: Seen, now: float) -> Group:
    """Return what is known, as it stands on the screen."""
    return Group(_title(seen, now), _facts(seen, now), _experts(seen), _events(seen))


def _title(seen: Seen, now: float) -> Table:
    state = Text("answers", "green")
    if seen.gauges.get("levit_worker_stopped"):
        state = Text("the worker has stopped: see /readyz", "red")
    if seen.away_since is not None:
        state = Text(f"away for {now - seen.away_since:.0f} s: {printable(seen.problem)}", "red")
    title = Table.grid(expand=True, padding=(0, 1))
    title.add_column(no_wrap=True)
    title.add_column(justify="right", no_wrap=True, overflow="ellipsis", ratio=1)
    title.add_row(Text(f"{printable(seen.url)}  stream {printable(seen.stream)}", "bold"), state)
    return title


def _facts(seen: Seen, now: float) -> Table:
    model, facts = seen.model, Table.grid(padding=(0, 3))
    facts.add_row(
        _fact("model", model.get("model_version") or None),
        _fact("learned", model.get("samples_learned"), ",.0f", " samples"),
        _fact("rate", seen.rate if seen.learned else None, ",.0f", "/s"),
    )
    facts.add_row(
        _fact("backlog", seen.gauges.get("levit_stream_backlog"), ",.0f", " entries"),
        _fact("staleness", seen.gauges.get("levit_staleness_seconds"), ".1f", " s"),
        _fact("expansions", model.get("expansions")),
    )
    published = model.get("published_at")
    facts.add_row(
        _fact("accuracy", model.get("prequential_accuracy"), ".1%"),
        Text(_curve(seen.accuracies), "cyan"),
        _fact("model's age", None if published is None else now - published, ".0f", " s"),
    )
    return facts


def _fact(name: str, value: float | None, spelling: str = "", unit: str = "") -> Text:
    shown = "-" if value is None else f"{value:{spelling}}{unit}"
    return Text.assemble((f"{name} ", "dim"), shown)


def _curve(values: deque[float]) -> str:
    """Return values as a row of bars, from the least to the greatest."""
    if len(values) < 2:  # noqa: PLR2004  one value is no curve
        return ""
    least, most = min(values), max(values)
    scale = (len(_BARS) - 1) / ((most - least) or 1)
    return "".join(_BARS[round((value - least) * scale)] for value in [*values][-24:])


def _experts(seen: Seen) -> Table:
    known = seen.model.get("experts", [])
    hidden = len(known) - MOST_EXPERTS
    title = f"experts {len(known)}" + (f", the newest {MOST_EXPERTS}" if hidden > 0 else "")
    title += f"; classes {len(seen.model.get('classes', []))}"
    table = Table(title=title, title_justify="left", expand=True, box=None, padding=(0, 1, 0, 0))
    for column in ("id", "born at", "cause", "novelty", "samples"):
        table.add_column(column, no_wrap=True)
    table.add_column("classes", no_wrap=True, overflow="ellipsis", ratio=1)
    for one in known[-MOST_EXPERTS:]:
        table.add_row(
            Text(str(one["id"]), "bold" if one["state"] == "active" else ""),
            cell(f"step {one['born_step']}"),
            cell(one["cause"]),
            cell(None if one["novelty"] is None else f"{one['novelty']:.3g}"),
            cell(f"{one['samples']:,}"),
            cell(" ".join(map(str, one["classes"]))),
        )
    return table


def _events(seen: Seen) -> Table:
    table = Table(title="events", title_justify="left", expand=True, box=None, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for event in reversed(seen.events):
        told = " ".join(f"{name}={value}" for name, value in event.data.items())
        table.add_row(cell(event.kind), cell(told))
    return table


# How it becomes known


def watch(url: str, *, key: str | None, stream: str | None, once: bool) -> None:
    """Show what a stream of a service does until Ctrl-C, or once.

    Raises:
        ApiError: it was refused, or, `once`, nothing is there.
    """
    seen = Seen(url, stream or "default")
    try:
        asyncio.run(_show(seen, key=key, stream=stream, once=once))
    except KeyboardInterrupt:
        return


async def _show(seen: Seen, *, key: str | None, stream: str | None, once: bool) -> None:
    looking = AsyncClient(
        seen.url, ANSWER_S, key=key, stream=stream, retry_s=ANSWER_S if once else 0
    )
    async with looking, AsyncClient(seen.url, key=key, retry_s=math.inf) as listening:
        following = asyncio.create_task(_follow(listening, seen))
        try:
            if once:
                await _look(looking, seen)
                await asyncio.wait([following], timeout=EVENTS_S)
                Console().print(picture(seen, time.time()))
            else:
                await _keep_showing(looking, seen)
        finally:
            following.cancel()


async def _keep_showing(client: AsyncClient, seen: Seen) -> None:
    with Live(auto_refresh=False) as live:
        while True:
            try:
                await _look(client, seen)
            except ApiError as refusal:
                if refusal.status and not refusal.may_pass:
                    raise
                seen.lose(refusal, time.time())
            live.update(picture(seen, time.time()), refresh=True)
            await asyncio.sleep(EVERY_S)


async def _look(client: AsyncClient, seen: Seen) -> None:
    """Ask once for everything; the metrics only where the key may see them."""
    model = await client.experts()
    try:
        gauges = _of_stream(await client.metrics(), seen.stream)
    except ApiError as refusal:
        if refusal.may_pass:
            raise
        gauges = {}
    seen.renew(model, gauges, time.time())


def _of_stream(text: str, stream: str) -> dict[str, float]:
    """Return the metrics of one stream by name, of those that have one value a stream."""
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if set(sample.labels) <= {"stream"} and sample.labels.get("stream", stream) == stream
    }


async def _follow(client: AsyncClient, seen: Seen) -> None:
    """Take in events until there is a reason why there are none."""
    try:
        async for event in client.events(after="0"):
            seen.events.append(event)
    except ApiError as refusal:
        seen.events.append(Event(id="", kind="no events", data={"because": refusal.message}))
