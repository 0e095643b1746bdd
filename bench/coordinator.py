"""The coordinator killed 20 times in a run, replaced after a few seconds. Value: 99th percentile of the steps, seconds.

The peer is the median step of the same run: no step waits for the coordinator.
"""

import argparse
import random
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from adaptrain.elastic.state.sample_log import records
from adaptrain.local.processes import LocalJob

from bench.report import emit
from bench.stalls import PACE
from tests.e2e.local_jobs import check_samples, job, running

SAMPLES, BATCH = 1078, 64
RATIO = 2.0


def steps(kills: int, workers: int = 2) -> list[float]:
    """Durations of all workers' steps from the first kill to the last coordinator's take-over, seconds."""
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as scratch:
        with LocalJob(job(**PACE), trace=Path(scratch)) as local:
            local.start_coordinator()
            for _ in range(workers):
                local.start_worker()
            before = running(local, workers).members
            time.sleep(2)
            began = time.time()
            for _ in range(kills):
                assert local.coordinator is not None
                local.coordinator.kill()
                local.coordinator.wait()
                time.sleep(chance.uniform(0, 3))
                local.start_coordinator()
                after = running(local, workers).members
                assert {m.id for m in after} == {m.id for m in before}, "a worker was lost"
                time.sleep(chance.uniform(0, 1))
            ended = time.time()
        check_samples(Path(scratch), SAMPLES, BATCH)
        moments = [[s["time"] for s in said if s["what"] == "applied"] for said in records(Path(scratch))]
    return [b - a for mine in moments for a, b in pairwise(mine) if began <= a and b <= ended]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    took = steps(parser.parse_args().kills)
    value, peer = statistics.quantiles(took, n=100)[98], statistics.median(took)
    emit(
        "coordinator", value, "s", "the run's median step", peer, value <= RATIO * peer, max=max(took), steps=len(took)
    )
