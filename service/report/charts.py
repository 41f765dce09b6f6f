"""Charts as inline SVG; every text is escaped, every colour is one of the page's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 280
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 20, 50
_INNER_W, _INNER_H = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
_TICKS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A point of a chart with what is told where the pointer rests on it."""

    x: float
    y: float
    told: str


def steps(marks: Sequence[Mark], *, end: float, x_label: str, y_label: str, name: str) -> str:
    """Return a curve that rises at each mark and goes on to `end`, as SVG.

    Args:
        marks: by ascending x; at least one.
        end: greatest x, in the unit of `x_label`.
        x_label: what x is, with its unit.
        y_label: what y is, with its unit.
        name: read aloud in place of the chart.
    """
    most_x, most_y = max(end, 1.0), _TICKS * math.ceil((max(mark.y for mark in marks) + 1) / _TICKS)
    path = f"M{_x(marks[0].x, most_x):.1f} {_y(marks[0].y, most_y):.1f}"
    for mark in marks[1:]:
        path += f"H{_x(mark.x, most_x):.1f}V{_y(mark.y, most_y):.1f}"
    path += f"H{_x(end, most_x):.1f}"
    dots = "".join(
        f'<circle class="dot" cx="{_x(mark.x, most_x):.1f}" cy="{_y(mark.y, most_y):.1f}" r="5">'
        f"<title>{escape(mark.told)}</title></circle>"
        for mark in marks
    )
    drawn = f'<path class="line" d="{path}"/>{dots}'
    return _framed(drawn, name, (most_x, most_y), (x_label, y_label))


def shares(values: Sequence[tuple[str, float]], *, x_label: str, y_label: str, name: str) -> str:
    """Return a bar for each name and its percentage, one at least, as SVG; the rest as `steps`."""
    most, wide = 100.0, _INNER_W / len(values)
    drawn = ""
    for at, (label, value) in enumerate(values):
        x, y = LEFT + wide * (at + 0.1), _y(value, most)
        drawn += (
            f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{wide * 0.8:.1f}" '
            f'height="{HEIGHT - BOTTOM - y:.1f}">'
            f"<title>{escape(label)}: {value:,.1f}</title></rect>"
            f'<text x="{x + wide * 0.4:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">'
            f"{escape(label)}</text>"
        )
    return _framed(drawn, name, (None, most), (x_label, y_label))


def _framed(
    drawn: str, name: str, most: tuple[float | None, float], labels: tuple[str, str]
) -> str:
    """Return what is drawn with its axes; x has numbers unless its greatest is None."""
    (most_x, most_y), (x_label, y_label) = most, labels
    grid = ""
    for tick in range(_TICKS + 1):
        y = _y(most_y * tick / _TICKS, most_y)
        grid += (
            f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">'
            f"{_number(most_y * tick / _TICKS)}</text>"
        )
        if most_x is not None:
            at = most_x * tick / _TICKS
            grid += (
                f'<text x="{_x(at, most_x):.1f}" y="{HEIGHT - BOTTOM + 16}" '
                f'text-anchor="middle">{_number(at)}</text>'
            )
    middle = HEIGHT / 2
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">{grid}{drawn}'
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text x="14" y="{middle}" text-anchor="middle" '
        f'transform="rotate(-90 14 {middle})">{escape(y_label)}</text></svg>'
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def _x(value: float, most: float) -> float:
    return LEFT + _INNER_W * value / most


def _y(value: float, most: float) -> float:
    return HEIGHT - BOTTOM - _INNER_H * value / most
