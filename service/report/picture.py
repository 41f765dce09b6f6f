"""The page as a picture, drawn by the Chromium that is installed, if any."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

from service.errors import Misused

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
"""Names under which it may be installed."""
WIDTH, TALLEST = 900, 16_000
"""Of the picture, in pixels; what is empty at its foot is cut off."""
PATIENCE_S = 60.0
_MARGIN = 24


def draw(page: Path, out: Path) -> None:
    """Write a picture of a page as PNG.

    Raises:
        Misused: there is no browser, it failed, or the picture cannot be written.
    """
    browser = next((found for one in BROWSERS if (found := shutil.which(one))), None)
    if browser is None:
        msg = f"cannot draw {out}: none of {', '.join(BROWSERS)} is installed; {page} is written"
        raise Misused(msg)
    with tempfile.TemporaryDirectory() as scratch:
        drawn = Path(scratch) / "page.png"
        _run(browser, page, drawn, Path(scratch))
        if not drawn.exists():
            raise Misused(f"cannot draw {out}: {browser} made no picture")
        try:
            _trimmed(drawn).save(out, "PNG")
        except OSError as refusal:
            raise Misused(f"cannot write {out}: {refusal.strerror}") from refusal


def _run(browser: str, page: Path, drawn: Path, profile: Path) -> None:
    """Let the browser draw; it makes no picture where it fails."""
    options = [
        *("--headless", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
        *(f"--user-data-dir={profile / 'profile'}", f"--window-size={WIDTH},{TALLEST}"),
        *(["--no-sandbox"] if os.geteuid() == 0 else []),  # it refuses root otherwise
    ]
    subprocess.run(  # noqa: S603  found by its name on PATH, as a shell would
        [browser, *options, f"--screenshot={drawn}", page.resolve().as_uri()],
        check=False,
        capture_output=True,
        timeout=PATIENCE_S,
    )


def _trimmed(drawn: Path) -> Image.Image:
    """Return a picture without what is empty below its content."""
    with Image.open(drawn) as opened:
        image = opened.convert("RGB")
    empty = Image.new("RGB", image.size, image.getpixel((0, image.height - 1)))
    content = ImageChops.difference(image, empty).getbbox()
    foot = image.height if content is None else min(image.height, content[3] + _MARGIN)
    return image.crop((0, 0, image.width, foot))
