"""Values as a terminal may show them: labels and reasons come from strangers."""

from rich.text import Text


def printable(value: object) -> str:
    r"""Return a value as text in which nothing moves the cursor or colours the screen.

    >>> printable("red \x1b[31m\n")
    'red \\x1b[31m\\n'
    """
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(value))


def cell(value: object) -> Text:
    """Return a value as a cell of a table, in which brackets are no markup; "-" for None."""
    return Text("-" if value is None else printable(value))
