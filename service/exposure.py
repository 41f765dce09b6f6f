"""Whether a service may start at all: nobody but this machine reaches one without keys."""

import ipaddress

from service.errors import CorruptState, SettingsError
from service.settings import Settings
from service.store.keys import read_keys


def check_exposure(settings: Settings) -> None:
    """Check that a service has keys, or is on loopback and was asked to do without.

    Raises:
        SettingsError: naming the setting, or the command that makes a key.
    """
    if _has_keys(settings):
        return
    if not settings.insecure:
        raise SettingsError(
            f"there are no keys in {settings.state_dir}: make one: `levit keys create --name ME "
            "--scope observe --scope predict --scope read`, or serve on loopback with --insecure"
        )
    if not settings.published_on_loopback and not _is_loopback(settings.host):
        raise SettingsError(
            f"LEVIT_HOST: expected a loopback address for an insecure service, got {settings.host}"
        )


def _has_keys(settings: Settings) -> bool:
    try:
        return read_keys(settings.state_dir) is not None
    except CorruptState:
        return True  # it starts, says so, and refuses everything


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
