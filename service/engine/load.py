"""The one door to the real engines; behind it torch is imported, which takes seconds."""

from service.engine.protocol import Engines


def load_engines(threads: int) -> Engines:
    """Return the engines of LEViT on so many CPU threads."""
    from service.engine.levit import LevitEngines

    return LevitEngines(threads=threads)
