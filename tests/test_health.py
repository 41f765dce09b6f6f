"""What a drift releases: what health itself has set aside, and nothing that others have."""

import numpy as np
import pytest

from service.settings import Settings
from service.store.entry import Entry
from service.worker.health import CONTRADICTS, DIVERGED, Health
from service.worker.step import Step
from tests.log_entries import SCHEMA
from tests.toy_engine import ToyEngines

X = np.zeros((1, 8, 8, 1), np.uint8)


def entry(number: int) -> Entry:
    return Entry(
        number=number,
        position=f"{number}-0",
        batch_id="0" * 32,
        key_id="anonymous",
        idempotency_key=None,
        schema=SCHEMA,
        n=1,
        x=X,
        labels=None,
        payload=b"",
    )


@pytest.mark.parametrize(
    ("reason", "released"),
    [
        (f"{DIVERGED}accuracy fell", ["12-0"]),
        (f"{CONTRADICTS}0 of 8 labels agree", ["12-0"]),
        ("the worker died 3 times while it learned this batch", []),
        ("rolled_back: to checkpoint 3", []),
        ("loss is not finite", []),
    ],
)
def test_only_what_health_set_aside_is_released_after_a_drift(
    reason: str, released: list[str]
) -> None:
    health = Health()
    health.went_back(after=10, until=11)

    health.after(
        ToyEngines().create(Settings(), SCHEMA), entry(12), Step(state="quarantined", reason=reason)
    )

    assert health.facts.set_aside == released
