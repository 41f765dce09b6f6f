"""Tables of shares as inline SVG: which classes are confused, and how well each went over time.

Dimension key: K classes, C columns, Q stretches of the stream.
"""

from collections.abc import Sequence
from html import escape

from service.report.charts import WIDTH, number, shortened, steps

MOST_NUMBERED = 20
"""Up to so many rows have their numbers written into their cells."""
_LEFT, _RIGHT, _TOP = 130, 20, 10
_LARGEST, _STRIP = 40.0, 22.0
"""Side of a cell, and height of a strip, at most."""
_LEGIBLE = 11.0
"""Least side of a cell that has its name beside it."""
_DARK = 0.55
"""Share from which a cell's number is written in the page's own colour."""
_HUES = 10
"""Steps between wrong and right."""


def confusion(rows: Sequence[Sequence[int]], names: Sequence[str], name: str) -> str:
    """Return the share of each row that lies in each column, in %, as SVG.

    Args:
        rows: [K, C] counts of each true class by what was answered.
        names: [C] of the columns; the first K are those of the rows.
        name: read aloud in place of the table.
    """
    side = min(_LARGEST, (WIDTH - _LEFT - _RIGHT) / len(names))
    drawn = ""
    for k, row in enumerate(rows):
        y, total = _TOP + side * k, sum(row)
        drawn += _row_name(names[k], y + side / 2, side)
        for c, count in enumerate(row):
            if count:
                told = f"{names[k]} answered as {names[c]}: {count:,} of {total:,}"
                place = (_LEFT + side * c, y, side)
                drawn += _cell(place, count / total, told, numbered=len(rows) <= MOST_NUMBERED)
    bottom = _TOP + side * len(rows)
    outline = (
        f'<path class="grid" d="M{_LEFT} {_TOP}h{side * len(names):.1f}v{bottom - _TOP:.1f}'
        f'h{-side * len(names):.1f}z"/>'
    )
    across = "".join(
        _column_name(one, _LEFT + side * (c + 0.5), bottom + 12, side)
        for c, one in enumerate(names)
    )
    labels = ("answered class", "true class")
    return _framed(outline + drawn + across, name, (bottom, bottom + 80), labels)


def strips(
    rows: Sequence[Sequence[float | None]], names: Sequence[str], ends: Sequence[float], name: str
) -> str:
    """Return a strip for each class, whose colour is its accuracy over the stream, as SVG.

    Args:
        rows: [K, Q] accuracy, 0 to 1; None where nothing was asked.
        names: [K] of the classes.
        ends: [Q] samples since the start at the end of each stretch.
        name: read aloud in place of the chart.
    """
    tall = max(4.0, min(_STRIP, 600 / len(rows)))
    wide = (WIDTH - _LEFT - _RIGHT) / max(ends[-1], 1)
    starts = [0, *ends[:-1]]
    drawn = ""
    for k, row in enumerate(rows):
        y = _TOP + tall * k
        drawn += _row_name(names[k], y + tall / 2, tall)
        for start, end, accuracy in zip(starts, ends, row, strict=True):
            if accuracy is not None:
                told = f"{names[k]}, samples {start:,.0f} to {end:,.0f}: {100 * accuracy:.1f} %"
                drawn += (
                    f'<rect class="h{round(_HUES * accuracy)}" x="{_LEFT + wide * start:.1f}" '
                    f'y="{y + 1:.1f}" width="{wide * (end - start):.1f}" height="{tall - 2:.1f}">'
                    f"<title>{escape(told)}</title></rect>"
                )
    bottom = _TOP + tall * len(rows)
    across = "".join(
        f'<text x="{_LEFT + wide * tick:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">'
        f"{number(tick)}</text>"
        for tick in steps(0, ends[-1])
        if tick <= max(ends[-1], 1)
    )
    labels = ("samples since the start", "class")
    return _framed(drawn + across + _key(bottom + 50), name, (bottom, bottom + 38), labels, key=36)


def hues() -> str:
    """Return the style of the colours between wrong and right."""
    near = {at: "--b" if 2 * at < _HUES else "--a" for at in range(_HUES + 1)}
    share = {at: 100 * abs(2 * at - _HUES) // _HUES for at in near}
    return "".join(
        f".h{at}{{fill:color-mix(in oklab,var({near[at]}) {share[at]}%,var(--m))}}" for at in near
    )


def _cell(place: tuple[float, float, float], share: float, told: str, *, numbered: bool) -> str:
    x, y, side = place
    cell = (
        f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" height="{side:.1f}" '
        f'fill-opacity="{0.08 + 0.92 * share:.2f}"><title>{escape(told)}</title></rect>'
    )
    if not numbered:
        return cell
    shade = "on" if share > _DARK else "off"
    written = f"{100 * share:.0f}" if share >= 0.01 else "<1"  # noqa: PLR2004  one in a hundred
    return (
        f'{cell}<text class="{shade}" x="{x + side / 2:.1f}" y="{y + side / 2 + 4:.1f}" '
        f'text-anchor="middle">{escape(written)}</text>'
    )


def _row_name(name: str, y: float, room: float) -> str:
    if room < _LEGIBLE:
        return ""
    return (
        f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(shortened(name))}'
        f"<title>{escape(name)}</title></text>"
    )


def _column_name(name: str, x: float, y: float, room: float) -> str:
    if room < _LEGIBLE:
        return ""
    return (
        f'<text text-anchor="end" transform="translate({x + 4:.1f} {y:.1f}) rotate(-45)">'
        f"{escape(shortened(name, 10))}<title>{escape(name)}</title></text>"
    )


def _key(y: float) -> str:
    """Return what the colours of strips mean."""
    drawn, x = f'<text x="{_LEFT}" y="{y + 11:.1f}">0 % right</text>', _LEFT + 62
    for at in range(_HUES + 1):
        x += 18
        drawn += f'<rect class="h{at}" x="{x - 18}" y="{y:.1f}" width="18" height="13"/>'
    return f'{drawn}<text x="{x + 8}" y="{y + 11:.1f}">100 % right; blank: none came</text>'


def _framed(
    drawn: str, name: str, ends: tuple[float, float], labels: tuple[str, str], *, key: int = 0
) -> str:
    """Return what is drawn, with what its axes are.

    Args:
        drawn: the inside.
        name: read aloud in place of it.
        ends: where the rows end, and where the label of x stands.
        labels: of x and y.
        key: room for what stands below the label of x.
    """
    bottom, below = ends
    middle = (_TOP + bottom) / 2
    return (
        f'<svg viewBox="0 0 {WIDTH} {below + 10 + key:.0f}" role="img" aria-label="{escape(name)}">'
        f'{drawn}<text x="{(_LEFT + WIDTH - _RIGHT) / 2}" y="{below:.0f}" text-anchor="middle">'
        f"{escape(labels[0])}</text>"
        f'<text x="14" y="{middle:.0f}" text-anchor="middle" '
        f'transform="rotate(-90 14 {middle:.0f})">{escape(labels[1])}</text></svg>'
    )
