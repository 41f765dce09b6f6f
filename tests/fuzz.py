"""Coverage-guided fuzzing of every decoder of a request: `make fuzz`, for a minute.

Each must return or refuse; anything else that is raised is a find, which atheris prints and keeps
as crash-*. Without atheris (pip install atheris) nothing is done. What is found becomes a row of
tests/bad_bodies.py.
"""

import importlib.util
import sys
import tempfile
from pathlib import Path

SECONDS = 60
RSS_MIB = 512


def main() -> None:
    """Fuzz for `SECONDS`, or for as long as the first argument says."""
    if importlib.util.find_spec("atheris") is None:
        sys.stderr.write("fuzz: skipped, atheris is not installed\n")
        return
    import atheris

    with atheris.instrument_imports(include=["service.api", "service.inputs", "PIL"]):
        from tests.decoders import MOST_BYTES, decode_one, seeds

    seconds = sys.argv[1] if len(sys.argv) > 1 else str(SECONDS)
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds()):
            (Path(corpus) / str(number)).write_bytes(seed)
        options = [
            f"-max_total_time={seconds}",
            f"-max_len={MOST_BYTES}",
            f"-rss_limit_mb={RSS_MIB}",
            "-print_final_stats=1",
        ]
        atheris.Setup([sys.argv[0], corpus, *options], decode_one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
