"""How well the model answers: over time, class by class, and what it takes for what."""

from collections.abc import Mapping
from typing import Any

from service.report.charts import Axes, Line, lines, shares
from service.report.growing import SAMPLES, marks
from service.report.heat import MOST_NUMBERED, confusion, strips
from service.report.life import Life
from service.report.markup import counted, note, percent, section, table

_FEW_CLASSES = 20
"""Up to so many classes have a bar or row of their own; more are the worst of them."""
_TESTED = "Each labelled sample is first answered and then learned, so every answer is a test."


def accuracy(life: Life) -> str:
    """Return how often it was right, over the stream."""
    known = [one for one in life.accuracy if one is not None]
    if not known:
        return section("Accuracy is not known: no sample came with a label")
    title = f"Of late {percent(known[-1])} of the answers were right"
    axes = Axes(
        name=title, x_label=SAMPLES, y_label="accuracy, %", most_y=100, marked="an expert is born"
    )
    drawn = Line(
        name="accuracy",
        colour="a",
        y=[None if one is None else 100 * one for one in life.accuracy],
    )
    said = f"{_TESTED} The curve is the share of right answers over about the last 1,000 of them. "
    said += "A class that has never been seen cannot be answered right: expect a dip where one "
    said += "comes for the first time."
    return section(title, lines(life.ends, [drawn], axes, marks(life.births)), note(said))


def hardest(model: Mapping[str, Any]) -> str:
    """Return the accuracy of each class of late."""
    pairs = zip(model["classes"], model["prequential_by_class"], strict=False)
    known = sorted(((str(c), 100 * a) for c, a in pairs if a is not None), key=lambda one: one[1])
    if not known:
        return section("Accuracy per class is not known: no labelled sample was tested yet")
    worst, value = known[0]
    title = f"The hardest class is {worst}: {value:.1f} % right when it last came"
    x_label = "class" if len(known) <= _FEW_CLASSES else f"class (the {_FEW_CLASSES} hardest)"
    axes = Axes(name=title, x_label=x_label, y_label="accuracy, %")
    return section(
        title,
        shares(known[:_FEW_CLASSES], axes),
        note("The share of each class' newest labelled samples that was answered right."),
    )


def classes(life: Life) -> str:
    """Return the accuracy of each class over the stream."""
    if not life.classes:
        return section("Classes cannot be told apart over time: no labelled sample was tested yet")
    title = (
        f"When each of {counted(len(life.classes), 'class', 'classes')} came, and how well it went"
    )
    said = "Each row is a class. Colour says how many of its samples in a stretch of the stream "
    said += "were answered right; where a row is blank no sample of the class came. A class that "
    said += "turns from right to wrong was forgotten."
    return section(
        title, strips(life.accuracy_by_class, life.classes, life.wide_ends, title), note(said)
    )


def forgotten(life: Life) -> str:
    """Return how much worse classes are answered than at their best."""
    found = life.returns
    if life.forgetting is None or not found:
        return section(
            "Forgetting cannot be told: no class came back",
            note(
                "To say what was forgotten, samples of a class must come in two stretches of the "
                "stream at least, ten or more in each."
            ),
        )
    title = _change(100 * life.forgetting)
    if not any(one.was_away for one in found):
        title = "Forgetting cannot be told: no class came back after it was gone"
    head = ("class", "best before", "at sample", "newest", "at sample", "drop, points")
    rows = [
        (
            *(one.name, percent(one.best), f"{one.best_at:,}"),
            *(percent(one.newest), f"{one.newest_at:,}", f"{round(100 * one.drop, 1) + 0.0:+.1f}"),
        )
        for one in found[:_FEW_CLASSES]
    ]
    said = "Best: the greatest accuracy in a stretch before the newest one in which the class came."
    if len(found) > _FEW_CLASSES:
        said += f" The {_FEW_CLASSES} largest drops of {len(found):,} classes."
    unknown = len(life.classes) - len(found)
    if unknown:
        said += f" Of {counted(unknown, 'class', 'classes')} nothing can be said: not seen twice."
    if not any(one.was_away for one in found):
        said += " All of these are from the only time that the class came."
    said += " How a class would be answered that has not come for long, nobody knows."
    return section(title, table(head, rows), note(said))


def _change(drop: float) -> str:
    """Return in words how many points were lost."""
    if drop < 0:
        return f"No forgetting: classes are answered {-drop:.1f} points better than ever before"
    return f"Forgetting: classes are answered {drop:.1f} points worse than at their best"


def confused(life: Life) -> str:
    """Return what the classes are taken for."""
    if not any(map(sum, life.confusion)):
        return section("What is taken for what is not known: no labelled sample was tested yet")
    names, rows = [*life.classes, "no answer"], life.confusion
    if not any(row[-1] for row in rows):
        names, rows = names[:-1], [row[:-1] for row in rows]
    title = _most_confused(rows, names)
    said = (
        "Each row is what the samples of a class were answered as, in % of the row: the stronger "
        "the colour, the more. Right answers are on the diagonal. All labelled samples since the "
        "start count, each answered before it was learned."
    )
    if len(life.classes) > MOST_NUMBERED:
        said += " The pointer tells names and numbers."
    return section(title, confusion(rows, names, title), note(said))


def _most_confused(rows: list[list[int]], names: list[str]) -> str:
    """Return the pair that is mixed up most, as the title."""
    mixed = [
        (count / sum(row), names[k], names[c])
        for k, row in enumerate(rows)
        for c, count in enumerate(row)
        if count and c != k
    ]
    if not mixed:
        return "No class was ever taken for another"
    share, true, answered = max(mixed)
    said = "left without an answer" if answered == "no answer" else f"taken for {answered}"
    return f"Most often mixed up: {percent(share)} of {true} {said}"
