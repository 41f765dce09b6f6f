"""Charts as inline SVG; every text is escaped, every colour is one of the page's.

Dimension key: P points of a chart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 74, 20, 34, 50
LONGEST = 14
"""Letters of a name beside a chart; the whole name is told where the pointer rests."""
_INNER_W, _INNER_H = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
_TICKS = 5
_LETTER = 7.0
"""Width of a letter, about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A curve of a chart."""

    name: str
    colour: str
    """`a`, `b` or `c`, as the page has them."""
    y: Sequence[float | None]
    """[P]; None leaves a gap."""
    stepped: bool = False
    """Whether a value holds from its point to the next, in place of a slope between them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A dashed line upright at x, with what is told where the pointer rests on it."""

    x: float
    told: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """What both axes say."""

    name: str
    """Read aloud in place of the chart."""
    x_label: str
    y_label: str
    """With their units."""
    most_y: float | None = None
    """Where the upright axis ends; None: above the greatest value."""
    marked: str = ""
    """What the marks are; empty without any."""
    whole: bool = False
    """Whether values are counts."""


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to places; both axes begin at 0 unless a value lies below."""

    most_x: float
    least_y: float
    most_y: float

    def x(self, value: float) -> float:
        return LEFT + _INNER_W * value / self.most_x

    def y(self, value: float) -> float:
        share = (value - self.least_y) / (self.most_y - self.least_y)
        return HEIGHT - BOTTOM - _INNER_H * share


@dataclass(slots=True)
class _Legend:
    """What curves and marks are, in one row above a chart."""

    drawn: list[str] = field(default_factory=list)
    x: float = LEFT

    def add(self, colour: str, name: str) -> None:
        line = f'<path class="{colour}" d="M{self.x:.0f} 14h22"/>'
        self.drawn.append(f'{line}<text x="{self.x + 28:.0f}" y="18">{escape(name)}</text>')
        self.x += 28 + _LETTER * len(name) + 24


def lines(x: Sequence[float], drawn: Sequence[Line], axes: Axes, marks: Sequence[Mark] = ()) -> str:
    """Return curves over x, [P] ascending and one at least, as SVG."""
    known = [value for line in drawn for value in line.y if value is not None]
    most = max(known, default=0.0) if axes.most_y is None else axes.most_y
    ticks = steps(min([0.0, *known]), most, whole=axes.whole)
    scale = _Scale(max(x[-1], 1.0), ticks[0], ticks[-1])
    legend = _Legend()
    inside = ""
    for mark in marks:
        inside += (
            f'<path class="mark" d="M{scale.x(mark.x):.1f} {TOP}V{HEIGHT - BOTTOM}">'
            f"<title>{escape(mark.told)}</title></path>"
        )
    for line in drawn:
        inside += f'<path class="line {line.colour}" d="{_path(x, line, scale)}"/>'
        legend.add(f"line {line.colour}", line.name)
    if marks:
        legend.add("mark", axes.marked)
    across = "".join(
        _tick_x(scale.x(tick), number(tick)) for tick in steps(0, x[-1]) if tick <= scale.most_x
    )
    return _framed(inside + across + "".join(legend.drawn), axes, scale, ticks)


def shares(values: Sequence[tuple[str, float]], axes: Axes) -> str:
    """Return a bar for each name and its percentage, one at least, as SVG."""
    scale, wide = _Scale(1.0, 0.0, 100.0), _INNER_W / len(values)
    drawn = ""
    for at, (label, value) in enumerate(values):
        x, y = LEFT + wide * (at + 0.1), scale.y(value)
        drawn += (
            f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{wide * 0.8:.1f}" '
            f'height="{HEIGHT - BOTTOM - y:.1f}">'
            f"<title>{escape(label)}: {value:,.1f} %</title></rect>"
            f"{_tick_x(x + wide * 0.4, shortened(label, int(wide / _LETTER)))}"
        )
    return _framed(drawn, axes, scale, steps(0, 100))


def steps(least: float, most: float, *, whole: bool = False) -> list[float]:
    """Return round numbers, evenly apart, of which the first and the last enclose a range.

    >>> steps(0, 23), steps(0, 0.4), steps(0, 2, whole=True)
    ([0, 5, 10, 15, 20, 25], [0.0, 0.1, 0.2, 0.3, 0.4], [0, 1, 2])
    """
    apart = max((most - least) / _TICKS, 1e-9)
    power = 10.0 ** math.floor(math.log10(apart))
    step = next(one for f in (1, 2, 5, 10) if (one := f * power) >= apart * (1 - 1e-9))
    if whole:
        step = max(1.0, step)
    first, last = math.floor(least / step), max(1, math.ceil(most / step - 1e-9))
    rounded = [round(at * step, 10) for at in range(first, last + 1)]
    return [int(one) for one in rounded] if step >= 1 else rounded


def number(value: float) -> str:
    """Return a number with as many digits as it needs."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,.3g}"


def shortened(name: str, most: int = LONGEST) -> str:
    """Return a name, cut where it has more letters than `most`.

    >>> shortened("hedgehog", 5)
    'hedg…'
    """
    return name if len(name) <= most else name[: max(0, most - 1)] + "…"


def _path(x: Sequence[float], line: Line, scale: _Scale) -> str:
    """Return a curve; a point between two gaps becomes a dot."""
    path, holds = "", False
    for at, value in zip(x, line.y, strict=True):
        if value is None:
            holds = False
            continue
        across, up = f"{scale.x(at):.1f}", f"{scale.y(value):.1f}"
        if not holds:
            path += f"M{across} {up}h0"
        else:
            path += f"H{across}V{up}" if line.stepped else f"L{across} {up}"
        holds = True
    return path


def _tick_x(x: float, text: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{escape(text)}</text>'
    )


def _framed(drawn: str, axes: Axes, scale: _Scale, ticks: Sequence[float]) -> str:
    """Return what is drawn with its upright axis and what the axes are."""
    grid = "".join(
        f'<path class="grid" d="M{LEFT} {scale.y(tick):.1f}H{WIDTH - RIGHT}"/>'
        f'<text x="{LEFT - 8}" y="{scale.y(tick) + 4:.1f}" text-anchor="end">{number(tick)}</text>'
        for tick in ticks
    )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(axes.name)}">'
        f"{grid}{drawn}"
        f'<text x="{LEFT + _INNER_W / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{escape(axes.x_label)}</text>"
        f'<text x="14" y="{middle}" text-anchor="middle" '
        f'transform="rotate(-90 14 {middle})">{escape(axes.y_label)}</text></svg>'
    )
