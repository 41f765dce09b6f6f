"""The page: sections of facts from GET /experts, each with a title that says what it shows."""

import time
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from service.report.charts import Mark, shares, steps

_STYLE = """
:root{color-scheme:light dark;--ink:#1d2430;--dim:#5a6473;--back:#fff;
--rule:#d8dde5;--a:#2463b4;--b:#b4461f}
@media screen and (prefers-color-scheme:dark){
:root{--ink:#e6e9ee;--dim:#a5aebb;--back:#14181f;--rule:#363e4a;--a:#7db3f5;--b:#f29a72}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back);
max-width:48rem;margin:2rem auto;padding:0 1rem}
h2{font-size:1.15rem;margin:2rem 0 .5rem}table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{text-align:left;padding:.25rem .6rem .25rem 0;
border-bottom:1px solid var(--rule)}td:last-child{overflow-wrap:anywhere}
svg{width:100%;height:auto}svg text{font-size:12px;fill:var(--dim)}.note{color:var(--dim)}
.grid{stroke:var(--rule);fill:none}.line{stroke:var(--a);stroke-width:2.5;fill:none}
.dot{fill:var(--b)}.bar{fill:var(--a)}
section{break-inside:avoid}
"""
_FEW_CLASSES = 30
"""Up to so many classes have a bar of their own; more are the least accurate of them."""


def page(model: Mapping[str, Any], *, stream: str) -> str:
    """Return the report as HTML that loads nothing and runs no script.

    Args:
        model: as GET /experts shows it, of a model that has been published.
        stream: name of the stream.
    """
    sections = (_facts(model), _growth(model), _born(model), _accuracy(model), _costs(model))
    title = f"What stream {stream} has learned"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1><p>{_ABOUT}</p>"
        f"{''.join(sections)}</body></html>\n"
    )


_ABOUT = (
    "A learner takes in this stream sample by sample and never sees one again unless it kept it. "
    "It is a group of small neural networks, called experts, and adds one where what arrives is "
    "too new for those it has. This page tells how it grew, how often it is right, and its cost."
)


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a table; "-" stands for None."""
    titles = "".join(f'<th scope="col">{escape(one)}</th>' for one in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{'-' if c is None else escape(str(c))}</td>" for c in row) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _counted(count: int, one: str) -> str:
    """Return a number with its noun.

    >>> _counted(1, "expert"), _counted(1200, "sample")
    ('1 expert', '1,200 samples')
    """
    return f"{count:,} {one}{'' if count == 1 else 's'}"


def _share(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.1f} %"


def _facts(model: Mapping[str, Any]) -> str:
    learned, labelled = model["samples_learned"], model["samples_labelled"]
    since = _share(model["samples_correct"] / labelled) if labelled else None
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(model["published_at"]))
    rows = (
        ("model version", f"{model['model_version']:,}, published {made}"),
        ("batches learned", f"{model['step']:,}"),
        ("labelled samples", f"{labelled:,}"),
        ("right before they were learned, since the start", since),
        ("the same of late", _share(model["prequential_accuracy"])),
        ("classes", len(model["classes"])),
    )
    title = f"{_counted(learned, 'sample')} learned by {_counted(len(model['experts']), 'expert')}"
    return _section(title, _table(("figure", "value"), rows))


def _growth(model: Mapping[str, Any]) -> str:
    born = sorted(model["experts"], key=lambda expert: expert["born_step"])
    if not born:
        return _section("There are no experts yet")
    marks = [
        Mark(x=one["born_step"], y=count, told=f"expert {one['id']}, batch {one['born_step']}")
        for count, one in enumerate(born, start=1)
    ]
    title = (
        f"Growth: {_counted(len(born), 'expert')} after {_counted(model['step'], 'learning step')}"
    )
    chart = steps(
        marks, end=model["step"], x_label="batches learned", y_label="experts", name=title
    )
    return _section(title, chart, _note("Each dot is the birth of an expert that is still there."))


def _born(model: Mapping[str, Any]) -> str:
    head = ("expert", "born at batch", "cause", "novelty", "threshold", "p-value")
    rows = [
        (
            *(one["id"], one["born_step"], one["cause"]),
            *(None if one[name] is None else f"{one[name]:.3g}" for name in _NUMBERS),
            *(f"{one['samples']:,}", ", ".join(map(str, one["classes"]))),
        )
        for one in model["experts"]
    ]
    title = f"The experts, and what caused each of {_counted(model['expansions'], 'expansion')}"
    return _section(title, _table((*head, "samples", "classes"), rows))


_NUMBERS = ("novelty", "threshold", "p_value")


def _accuracy(model: Mapping[str, Any]) -> str:
    pairs = zip(model["classes"], model["prequential_by_class"], strict=False)
    known = sorted(((str(c), 100 * a) for c, a in pairs if a is not None), key=lambda one: one[1])
    if not known:
        return _section("Accuracy per class is not known: no labelled sample was tested yet")
    worst, value = known[0]
    title = f"Of late, class {worst} is the hardest: {value:.1f} % right"
    x_label = "class" if len(known) <= _FEW_CLASSES else f"class (the {_FEW_CLASSES} hardest)"
    chart = shares(known[:_FEW_CLASSES], x_label=x_label, y_label="accuracy, %", name=title)
    note = "Share of labelled samples that were answered right before they were learned."
    return _section(title, chart, _note(note))


def _costs(model: Mapping[str, Any]) -> str:
    spent = model["sample_gradients"]
    rows = (
        ("parameters", f"{model['parameters']:,}"),
        ("bytes of the whole state", f"{model['state_bytes']:,}"),
        ("sample-gradients spent (forward 1, backward 2)", spent and f"{spent:,.0f}"),
    )
    title = f"Cost: {model['parameters']:,} parameters, {model['state_bytes'] / 1e6:,.1f} MB"
    return _section(title, _table(("cost", "amount"), rows))
