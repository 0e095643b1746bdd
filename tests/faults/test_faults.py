"""Schedules of faults against a local job: seeds that once failed, and new ones each time."""

import os
import random

import pytest

from tests.faults.campaign import results

KEPT = [1, 5, 209, 403]
"""Seeds that found something."""
NEW, SIDE_BY_SIDE = 20, 6


@pytest.mark.timeout(1200)
def test_schedules_of_faults() -> None:
    first = int(os.environ.get("FAULTS_SEED", random.SystemRandom().randrange(1_000_000, 2_000_000_000)))
    print(f"FAULTS_SEED={first}", flush=True)
    failed = [said["why"] for said in results([*KEPT, *range(first, first + NEW)], SIDE_BY_SIDE) if not said["ok"]]
    assert not failed, "\n\n".join(failed)
