"""How long survivors stand still when a worker is lost, joins or leaves: adaptrain's side of the comparison.

A stall is the longest gap between a survivor's applied steps in the 2 s after the event, less its median step.
"""

import itertools
import random
import signal
import statistics
import tempfile
import time
from pathlib import Path

from adaptrain.elastic.state.sample_log import read_times
from adaptrain.local.processes import LocalJob

from tests.e2e.local_jobs import job, running

WINDOW_SECONDS = 2.0
PACE = {"model": {"name": "bench.paced:mlp", "args": {"seconds": 0.01}}}


def stalls_after(times: list[tuple[float, int]], events: list[float], window: float = WINDOW_SECONDS) -> list[float]:
    """One survivor's stall, seconds, for each event (Unix time) that it lived through."""
    gaps = [(a, b, b - a) for (a, _), (b, _) in itertools.pairwise(times)]
    if not gaps:
        return []
    median = statistics.median(g for *_, g in gaps)
    found = []
    for event in events:
        near = [g for a, b, g in gaps if b >= event and a <= event + window]
        if near and times[0][0] < event and times[-1][0] > event + window:
            found.append(max(near) - median)
    return found


def worst_stalls(trace: Path, events: list[float]) -> list[float]:
    """For each event, the longest stall of any survivor."""
    worst: dict[float, float] = {}
    for path in trace.glob("*.jsonl"):
        times = read_times(trace, path.stem)
        for event in events:
            for stall in stalls_after(times, [event]):
                worst[event] = max(worst.get(event, 0.0), stall)
    return list(worst.values())


def kills(count: int, workers: int = 3, how: signal.Signals = signal.SIGKILL) -> tuple[list[float], int]:
    """Kill or stop one of ``workers`` so many times, each replaced.

    Returns the stalls and how many workers hung or crashed besides.
    """
    chance = random.Random(count)
    with tempfile.TemporaryDirectory() as scratch, LocalJob(job(**PACE), trace=Path(scratch)) as local:
        local.start_coordinator()
        for _ in range(workers):
            local.start_worker()
        running(local, workers)
        killed, events = set(), []
        for _ in range(count):
            time.sleep(WINDOW_SECONDS / 2 + chance.random())
            victim = chance.choice(local.alive())
            events.append(time.time())
            local.signal(victim, how)
            killed.add(victim)
            time.sleep(WINDOW_SECONDS)
            local.signal(victim, signal.SIGKILL)
            local.start_worker()
            running(local, workers)
        time.sleep(WINDOW_SECONDS + 0.5)
        lost = [n for n, p in local.workers.items() if p.exitcode is not None and n not in killed]
        return worst_stalls(Path(scratch), events), len(lost)


def resizes(count: int, workers: int = 2) -> tuple[list[float], list[float]]:
    """Let a worker join and one leave, so many times. Returns the survivors' stalls after joins and after leaves."""
    with tempfile.TemporaryDirectory() as scratch, LocalJob(job(**PACE), trace=Path(scratch)) as local:
        local.start_coordinator()
        for _ in range(workers):
            local.start_worker()
        running(local, workers)
        joins, leaves = [], []
        for _ in range(count):
            time.sleep(0.5)
            number = local.start_worker()
            progress = running(local, workers + 1)
            joins.append(next(m.joined for m in progress.members if m.id == str(number)))
            time.sleep(WINDOW_SECONDS)
            leaves.append(time.time())
            local.signal(local.alive()[0], signal.SIGTERM)
            running(local, workers)
            time.sleep(WINDOW_SECONDS)
        time.sleep(0.5)
        return worst_stalls(Path(scratch), joins), worst_stalls(Path(scratch), leaves)
