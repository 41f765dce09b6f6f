"""The page: sections of what was gathered, each with a title that says what it shows."""

from html import escape

from service.report import answering, growing
from service.report.gathered import Gathered
from service.report.heat import hues
from service.report.life import Life
from service.report.markup import counted, moment, note, percent, section, span, table

_STYLE = """
:root{color-scheme:light dark;--ink:#1d2430;--dim:#5a6473;--back:#fff;
--rule:#d8dde5;--a:#2463b4;--b:#b4461f;--c:#6b4bb8;--m:#ecd48a}
@media screen and (prefers-color-scheme:dark){
:root{--ink:#e6e9ee;--dim:#a5aebb;--back:#14181f;--rule:#363e4a;--a:#7db3f5;--b:#f29a72;
--c:#b9a2f2;--m:#6f6544}}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back);
max-width:52rem;margin:2rem auto;padding:0 1rem}
h2{font-size:1.15rem;margin:2.2rem 0 .5rem;overflow-wrap:anywhere}
table{border-collapse:collapse;width:100%;font-size:.9rem}.wide{overflow-x:auto}
th,td{text-align:left;padding:.25rem .6rem .25rem 0;vertical-align:top;
border-bottom:1px solid var(--rule)}
svg{width:100%;height:auto}svg text{font-size:12px;fill:var(--dim)}.note{color:var(--dim)}
.grid{stroke:var(--rule);fill:none}
.line{stroke-width:2;fill:none;stroke-linecap:round;stroke-linejoin:round}
.a{stroke:var(--a)}.b{stroke:var(--b);stroke-dasharray:7 5}
.mark{stroke:var(--c);stroke-dasharray:3 4;fill:none}.bar{fill:var(--a)}
svg .on{fill:var(--back)}svg .off{fill:var(--ink)}
.strip{display:grid;grid-template-columns:repeat(3,2rem);gap:2px}
.strip img{width:2rem;height:2rem;image-rendering:pixelated;object-fit:contain}
section{break-inside:avoid}
@media (max-width:36rem){svg text{font-size:15px}.broad{min-width:42rem}}
"""
_ABOUT = (
    "A learner takes in this stream sample by sample and never sees one again unless it kept it. "
    "It is a group of small neural networks, called experts, and adds one where what arrives is "
    "too new for those it has. This page tells how it grew, how often it is right, and its cost."
)


def page(gathered: Gathered, *, stream: str) -> str:
    """Return the report as HTML that loads nothing and runs no script.

    Args:
        gathered: of a model that has been published.
        stream: name of the stream.
    """
    life = Life.of(gathered.timeline)
    evidence = gathered.model["sample_gradients"] is not None  # preset `paper` counts none
    sections = (
        _facts(gathered, life),
        growing.growth(life),
        growing.newness(life, evidence=evidence),
        growing.origins(gathered, life),
        answering.accuracy(life),
        answering.classes(life),
        answering.hardest(gathered.model),
        answering.confused(life),
        answering.forgotten(life),
        growing.happenings(gathered.events),
        _costs(gathered, life),
    )
    title = f"What stream {stream} has learned"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}{hues()}</style></head><body><h1>{escape(title)}</h1><p>{_ABOUT}</p>"
        f"{''.join(sections)}</body></html>\n"
    )


def _facts(gathered: Gathered, life: Life) -> str:
    model = gathered.model
    learned, labelled = model["samples_learned"], model["samples_labelled"]
    since = percent(model["samples_correct"] / labelled) if labelled else None
    rows = [
        ("model version", f"{model['model_version']:,}, published {moment(model['published_at'])}"),
        ("batches learned", f"{model['step']:,}"),
        ("labelled samples", f"{labelled:,}"),
        ("right before they were learned, since the start", since),
        ("the same of late", percent(model["prequential_accuracy"])),
        ("classes", f"{len(model['classes']):,}"),
    ]
    if life.at:
        rows.append(("newest sample", moment(life.at[-1])))
    title = f"{counted(learned, 'sample')} learned by {counted(len(model['experts']), 'expert')}"
    return section(title, table(("figure", "value"), rows))


def _costs(gathered: Gathered, life: Life) -> str:
    model = gathered.model
    spent = model["sample_gradients"]
    rows = [
        ("parameters", f"{model['parameters']:,}"),
        ("bytes of the whole state", f"{model['state_bytes']:,}"),
        ("sample-gradients spent", None if spent is None else f"{spent:,.0f}"),
    ]
    title = f"Cost: {counted(model['parameters'], 'parameter')}, "
    title += f"{model['state_bytes'] / 1e6:,.1f} MB"
    said = "Bytes: the experts and all they need to go on learning, kept samples among them. "
    if spent is not None:
        said += "Sample-gradients: a sample once forward through a network is 1, once back 2. "
    seconds = max(model["published_at"], life.at[-1]) - life.at[0] if life.at else 0
    if seconds > 0:
        title += f", {span(seconds)}" if seconds >= 1 else ""
        rows += [
            ("seconds in which the samples arrived", f"{life.at[-1] - life.at[0]:,.1f}"),
            ("seconds until the model had learned them", f"{seconds:,.1f}"),
            ("samples learned a second", f"{life.ends[-1] / seconds:,.1f}"),
        ]
        said += "Seconds are counted from when the first batches were accepted, pauses included."
    else:
        said += "How long it took is not known: the time line has no entry yet."
    return section(title, table(("cost", "amount"), rows), note(said))
