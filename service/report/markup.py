"""Pieces of the page: sections, tables and sentences; every text is escaped."""

import time
from collections.abc import Iterable
from html import escape

_FEW_COLUMNS = 6
"""A table with more is scrolled on a narrow screen."""


class Markup(str):
    """Text that is HTML already, and is not escaped."""

    __slots__ = ()


def section(title: str, *parts: str) -> str:
    """Return parts, which are HTML, under a title that states what they show."""
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a table; "-" stands for None."""
    titles = [f'<th scope="col">{escape(one)}</th>' for one in head]
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    inside = f"<thead><tr>{''.join(titles)}</tr></thead><tbody>{body}</tbody></table>"
    broad = ' class="broad"' if len(titles) > _FEW_COLUMNS else ""
    return f'<div class="wide" tabindex="0"><table{broad}>{inside}</div>'


def _cell(value: object) -> str:
    if isinstance(value, Markup):
        return f"<td>{value}</td>"
    return f"<td>{'-' if value is None else escape(str(value))}</td>"


def note(text: str) -> str:
    """Return what helps to read a chart."""
    return f'<p class="note">{escape(text)}</p>'


def counted(count: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun.

    >>> counted(1, "expert"), counted(1200, "sample"), counted(2, "class", "classes")
    ('1 expert', '1,200 samples', '2 classes')
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def percent(share: float | None) -> str | None:
    """Return a share in words.

    >>> percent(0.1234)
    '12.3 %'
    """
    return None if share is None else f"{100 * share:.1f} %"


def moment(at: float) -> str:
    """Return a moment, given in Unix seconds, as people write it."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))


def span(seconds: float) -> str:
    """Return a time in the largest unit of which there are two.

    >>> span(95), span(7300), span(400000)
    ('95 seconds', '2 hours', '5 days')
    """
    for size, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return counted(round(seconds), "second")
