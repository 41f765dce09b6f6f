"""What commands of the command line share: options, and the way to the service."""

import os
from pathlib import Path
from typing import Annotated

import typer

from service.client import Client
from service.settings import KEY, Settings

RETRY_S = 3.0
"""How long a command that shows or changes something tries to reach the service."""
Url = Annotated[
    str | None, typer.Option(help="Address of the API; unset: the one in this environment.")
]
Stream = Annotated[
    str | None, typer.Option(help="Name of the stream; unset: the one called default.")
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


def key() -> str | None:
    """Return the key that this environment has for the service, LEVIT_KEY, or None."""
    return os.environ.get(KEY) or None


def connection(url: str | None, stream: str | None, *, retry_s: float = RETRY_S) -> Client:
    """Return a client of one stream of the service, with the key of this environment."""
    return Client(address(url), key=key(), stream=stream, retry_s=retry_s)
