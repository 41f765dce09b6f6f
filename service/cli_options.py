"""Options that commands of the command line share."""

from pathlib import Path
from typing import Annotated

import typer

from service.settings import Settings

RETRY_S = 3.0
"""How long a command that shows or changes something tries to reach the service."""
Url = Annotated[
    str | None, typer.Option(help="Address of the API; unset: the one in this environment.")
]
StateDir = Annotated[
    Path | None, typer.Option(help="Directory of everything durable (LEVIT_STATE_DIR).")
]


def files_of(state_dir: Path | None) -> Settings:
    """Return the settings of a command that reads or writes the files of a state directory.

    Raises:
        SettingsError: as `Settings.read`, or the key that signs these files cannot be read.
    """
    from service.store import directory

    settings = Settings.read(state_dir=state_dir)
    directory.sign_with(settings.state_hmac_key_file)
    return settings


def address(url: str | None) -> str:
    """Return where the API is: as told, or where this environment's would listen."""
    settings = Settings.read()
    return url or f"http://{settings.host}:{settings.port}"
