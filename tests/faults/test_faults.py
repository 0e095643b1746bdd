"""Schedules of faults against a local job: seeds that once failed, and new ones each time."""

import os
import random

import pytest

from tests.e2e.local_jobs import job
from tests.faults.campaign import run
from tests.faults.reference import Reference

KEPT = [1, 5]
"""Seeds that found something."""
NEW = 20


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(job())


@pytest.mark.parametrize("seed", KEPT)
def test_a_schedule_that_once_failed(seed: int, reference: Reference) -> None:
    run(seed, reference)


def test_new_schedules(reference: Reference) -> None:
    first = int(os.environ.get("FAULTS_SEED", random.SystemRandom().randrange(1_000_000, 2_000_000_000)))
    for seed in range(first, first + NEW):
        print(f"seed {seed}", flush=True)
        run(seed, reference)
