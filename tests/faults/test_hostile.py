"""A few seconds of hostile input for each parser and listener; ``make hostile`` takes a minute for each."""

import os
import random

import pytest

from tests.faults.hostile.targets import TARGETS

SECONDS = 3.0


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_hostile_input_is_refused_and_does_no_harm(target: str) -> None:
    seed = int(os.environ.get("HOSTILE_SEED", random.SystemRandom().randrange(1_000_000)))
    print(f"HOSTILE_SEED={seed}", flush=True)
    outcome = TARGETS[target](SECONDS, random.Random(seed))
    assert outcome.ok, str(outcome)
