"""How the model grew: its experts, how new what arrived was, and what each expert came from."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from service.client import Event
from service.report.charts import Axes, Line, Mark, lines
from service.report.gathered import Gathered
from service.report.life import Birth, Life
from service.report.markup import Markup, counted, moment, note, section, table

SAMPLES = "samples since the start"


def marks(births: Sequence[Birth]) -> list[Mark]:
    """Return the births of experts as marks of a chart over samples."""
    return [
        Mark(x=one.samples, told=f"expert {one.expert}, after {counted(one.samples, 'sample')}")
        for one in births
    ]


def growth(life: Life) -> str:
    """Return how many experts there were."""
    if not life.ends:
        return section("Growth is not known: the time line has no entry yet")
    born = life.experts[-1] - life.experts[0]
    title = f"The model grew from {counted(life.experts[0], 'expert')} to {life.experts[-1]:,}"
    if born <= 0:
        title = f"The model has {counted(life.experts[-1], 'expert')} and did not grow"
    axes = Axes(name=title, x_label=SAMPLES, y_label="experts", whole=True)
    drawn = Line(name="experts", colour="a", y=life.experts, stepped=True)
    said = "An expert is a small neural network. A step upwards is the birth of one: what arrived "
    said += "was too new for those that were there."
    return section(title, lines(life.ends, [drawn], axes), note(said))


def newness(life: Life, *, evidence: bool) -> str:
    """Return how new what arrived was.

    Args:
        life: of the stream.
        evidence: whether novelty is the logarithm of evidence for change.
    """
    if all(one is None for one in life.novelty) or life.threshold is None:
        return section("Novelty is not known: none was measured yet")
    times = counted(len(life.births), "time")
    title = f"Novelty led to a new expert {times}"
    if not life.births:
        title = "Novelty never led to a new expert"
    unit = "log10 of evidence" if evidence else "of the replay buffer"
    axes = Axes(name=title, x_label=SAMPLES, y_label=f"novelty, {unit}", marked="an expert is born")
    drawn = (
        Line(name="novelty", colour="a", y=life.novelty),
        Line(name="threshold", colour="b", y=[life.threshold] * len(life.ends)),
    )
    said = (
        "Novelty says how strongly what arrives differs from what the newest expert was trained "
        "on. Where it crosses the threshold an expert is born. Each point is the greatest novelty "
        "of a stretch of the stream; where the curve is broken none was measured, because the "
        "newest expert was still being trained."
    )
    if evidence:
        said += " One more on its axis is ten times the evidence."
    return section(title, lines(life.ends, drawn, axes, marks(life.births)), note(said))


def origins(gathered: Gathered, life: Life) -> str:
    """Return what each expert came from, with samples it has kept."""
    model = gathered.model
    born = {one.expert: one for one in life.births}
    head = ["expert", "born", "cause", "novelty", "threshold", "samples learned", "classes"]
    rows: list[list[object]] = [
        [
            *(one["id"], _when(one, born.get(one["id"])), _CAUSES.get(one["cause"], one["cause"])),
            *(None if one[name] is None else f"{one[name]:.3g}" for name in _NUMBERS),
            *(f"{one['samples']:,}", _classes(one["classes"])),
        ]
        for one in model["experts"]
    ]
    title = f"What caused each of {counted(model['expansions'], 'expansion')}"
    if not model["expansions"]:
        title = "No expansion yet: the experts are those of the beginning"
    shown = list(map(note, gathered.missing))
    if any(one.get("png") for several in gathered.replay.values() for one in several):
        head.append("kept samples that it answers")
        for row, one in zip(rows, model["experts"], strict=True):
            row.append(_pictures(gathered.replay.get(one["id"], [])))
        shown.insert(0, note(_KEPT))
    said = (
        "One row for each expert that is still there. The first is there from the beginning, so "
        "nothing caused it. Novelty and threshold are those of the moment of birth."
    )
    refused = sum(model["expansions_refused"].values())
    if refused:
        said += f" The model asked {counted(refused, 'more time')} for an expert and was refused."
    return section(title, table(head, rows), note(said), *shown)


def happenings(events: Sequence[Event] | None) -> str:
    """Return what went wrong with the stream, and what was done about it."""
    if events is None:
        return section("What else happened is not known: the service tells no events now")
    found = {kind: [one for one in events if one.kind == kind] for kind in _TROUBLE}
    rows = [
        (said, f"{len(found[kind]):,}", *_when_first_and_newest(found[kind]))
        for kind, said in _TROUBLE.items()
        if found[kind]
    ]
    if not rows:
        said = "There was no drift, rollback or stop, and no batch was set aside."
        return section("Nothing is known to have gone wrong", note(said + _AS_FAR))
    times = counted(sum(map(len, found.values())), "event")
    title = f"What else happened: {times} that people who run this should know"
    return section(title, table(("what", "times", "first", "newest"), rows), note(_AS_FAR))


_TROUBLE = {
    "drifted": "what was learned no longer held (drift)",
    "rolled_back": "the model went back to an earlier state",
    "quarantined": "batches that harm were set aside",
    "dropped": "batches were thrown away for good",
    "released": "batches set aside were queued again",
    "stopped": "learning stopped and waited for a human",
    "recovered": "learning went on",
    "resynced": "learning went on after a loss",
    "gap": "older events are not kept any more",
}
"""Kinds of events in words."""
_AS_FAR = " A service keeps its newest 10,000 events."


def _when_first_and_newest(events: Sequence[Event]) -> list[str | None]:
    """Return when it happened; None where that is not told."""
    told = [events[0].data.get("at"), events[-1].data.get("at")]
    return [None if at is None else moment(at) for at in told]


_NUMBERS = ("novelty", "threshold")
_CAUSES = {
    "inputs": "inputs unlike any before",
    "errors": "more errors than before",
    "asked": "asked for, after a drift",
}
_KEPT = (
    "The pictures are some of the samples that the model has kept to learn from again, each beside "
    "the expert that answers it now; - where there is none."
)
_MOST_CLASSES = 12
"""Named for one expert."""


def _when(expert: Mapping[str, Any], birth: Birth | None) -> str:
    if birth is None:
        return f"with batch {expert['born_step']:,}"
    return f"after {counted(birth.samples, 'sample')}, {moment(birth.at)}"


def _classes(names: Sequence[object]) -> str:
    said = ", ".join(map(str, names[:_MOST_CLASSES]))
    more = len(names) - _MOST_CLASSES
    return f"{said} and {more:,} more" if more > 0 else said


def _pictures(samples: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Return a strip of the samples that are images."""
    strip = "".join(
        f'<img src="data:image/png;base64,{escape(str(one["png"]))}" '
        f'alt="{escape(_named(one))}" title="{escape(_named(one))}">'
        for one in samples
        if one.get("png")
    )
    return Markup(f'<span class="strip">{strip}</span>') if strip else None


def _named(sample: Mapping[str, Any]) -> str:
    label = sample.get("label")
    return "no label" if label is None else f"label {label}"
