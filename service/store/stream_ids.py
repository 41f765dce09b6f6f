"""Positions: the ids that Redis gives entries of a stream, `<milliseconds>-<sequence>`."""

RawEntry = tuple[str, dict[bytes, bytes]]
"""Position and fields as they lie in the stream, unchecked."""
START = "0-0"
"""The position before the first entry."""


def order(position: str) -> tuple[int, int]:
    """Return what positions are sorted by."""
    milliseconds, _, sequence = position.partition("-")
    return int(milliseconds), int(sequence)


def following(position: str) -> str:
    """Return the lowest position behind another."""
    milliseconds, sequence = order(position)
    return f"{milliseconds}-{sequence + 1}"
