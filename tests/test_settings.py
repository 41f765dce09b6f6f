"""Settings: read from the environment once, and none is ignored in silence."""

import pytest

from service.errors import SettingsError
from service.settings import FOREIGN, Preset, Settings

OTHERS: dict[str, str] = {
    "expert": "dnn",
    "threshold": "0.5",
    "replay_per_batch": "1",
    "patch": "4",
    "budget": "3",
    "statistics_bytes": "2000000",
    "replay_bytes": "20000000",
    "key_replay_share": "0.5",
    "false_expansion_probability": "0.1",
    "false_expansion_horizon": "7",
}
"""A value that differs from the default, of every setting that one preset only knows."""
PAIRS = [(preset, name) for preset, names in FOREIGN.items() for name in sorted(names)]


@pytest.mark.parametrize(("preset", "name"), PAIRS)
def test_a_setting_that_the_preset_does_not_know_is_refused_with_both_names(
    preset: Preset, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEVIT_PRESET", preset)
    monkeypatch.setenv(f"LEVIT_{name.upper()}", OTHERS[name])

    with pytest.raises(SettingsError, match=f"LEVIT_{name.upper()}: preset {preset} does not"):
        Settings.read()


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_the_preset_that_knows_a_setting_takes_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control."""
    preset = "paper" if name in FOREIGN["default"] else "default"
    monkeypatch.setenv(f"LEVIT_{name.upper()}", OTHERS[name])

    assert str(getattr(Settings.read(preset=preset), name)) in (OTHERS[name], OTHERS[name] + ".0")


def test_no_setting_is_foreign_to_both_presets() -> None:
    assert not FOREIGN["default"] & FOREIGN["paper"]
    assert FOREIGN["default"] | FOREIGN["paper"] == set(OTHERS) < set(Settings.model_fields)


def test_the_preset_that_works_without_thought_is_the_default() -> None:
    assert Settings.read().preset == "default"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("input", "foo", "expected image:HxWxC, vector:D or series:TxC, got 'foo'"),
        ("port", "99999", "Input should be less than or equal to 65535, got '?99999'?"),
    ],
)
def test_a_value_that_cannot_be_is_told_once(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"LEVIT_{name.upper()}", value)

    with pytest.raises(SettingsError, match=f"^LEVIT_{name.upper()}: {said}$"):
        Settings.read()
