"""One kill a minute, each replaced, with sleep-like steps of 200 ms. Value: goodput.

Goodput is the time that all applied steps take undisturbed, at the size that the group has at that moment, divided by
wall time; ``reported`` is what the job itself said. The peer is torchrun: what its gap after a kill leaves of the time
between two kills. The restart that it takes to let the replacement in is not even counted.
"""

import argparse
import random
import signal
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from adaptrain.elastic.state.sample_log import records
from adaptrain.local.processes import LocalJob

from bench.report import emit
from bench.torchrun_peer import kill_gaps
from tests.e2e.local_jobs import check_samples, job, running

BAR = 0.98
SAMPLES, BATCH = 1078, 64
WORKERS = 3


def measure(minutes: float, every: float) -> tuple[float, float, int]:
    """Returns goodput, what the job reports of it, and how many kills there were."""
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as scratch:
        model = {"model": {"name": "tests.faults.model:mlp", "args": {"seconds": 0.2}}}
        with LocalJob(job(**model), trace=Path(scratch)) as local:
            local.start_coordinator()
            for _ in range(WORKERS):
                local.start_worker()
            running(local, WORKERS)
            time.sleep(5)
            began, kills = time.time(), 0
            while time.time() < began + minutes * 60:
                time.sleep(every)
                local.signal(chance.choice(local.alive()), signal.SIGKILL)
                kills += 1
                local.start_worker()
            ended = time.time()
            progress = local.progress()
        check_samples(Path(scratch), SAMPLES, BATCH)
        assert progress is not None
        return goodput(Path(scratch), began, ended), progress.goodput or 0.0, kills


def goodput(trace: Path, began: float, ended: float) -> float:
    """From the records: each step once, at the median duration of steps of groups as large. Of a size that no group had
    for two steps, since its replacement came at once, the shortest of the medians."""
    applied: dict[int, tuple[float, int]] = {}
    gaps: dict[int, list[float]] = {}
    for said in records(trace):
        mine = [s for s in said if s["what"] == "applied"]
        for a, b in pairwise(mine):
            if a["group"] == b["group"]:
                gaps.setdefault(b["size"], []).append(b["time"] - a["time"])
        for s in mine:
            if began <= s["time"] <= ended:
                applied[s["step"]] = s["time"], s["size"]
    usual = {size: statistics.median(seconds) for size, seconds in gaps.items()}
    least = min(usual.values())
    return sum(usual.get(size, least) for _, size in applied.values()) / (ended - began)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--every", type=float, default=60, help="seconds between two kills")
    parser.add_argument("--peer-kills", type=int, default=2)
    arguments = parser.parse_args()
    value, reported, kills = measure(arguments.minutes, arguments.every)
    peer = max(0.0, 1 - statistics.median(kill_gaps(arguments.peer_kills)) / arguments.every)
    emit("goodput", value, "ratio", "torchrun 2.15, tuned", peer, value >= BAR, kills=kills, reported=reported)
