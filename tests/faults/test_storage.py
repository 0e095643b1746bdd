"""A sample of the schedules of storage faults: some that are the same each time, and new ones."""

import os
import random

from tests.faults.storage import run

NEW = 16


def test_storage_that_fails_loses_nothing_that_is_good() -> None:
    first = int(os.environ.get("FAULTS_SEED", random.SystemRandom().randrange(1_000, 1_000_000)))
    print(f"FAULTS_SEED={first}", flush=True)
    for schedules in (range(16), range(first, first + NEW)):
        assert run(schedules)["faults"] > 0
