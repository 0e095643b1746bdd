"""Many seeded schedules of faults, one after the other or side by side; a campaign that was stopped goes on.

python -m tests.faults.campaign --seeds 0-499 --results results.jsonl
"""

import argparse
import concurrent.futures
import functools
import json
import multiprocessing
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from tests.e2e.local_jobs import job
from tests.faults.arena import Arena, Violation
from tests.faults.invariants import check
from tests.faults.reference import Reference
from tests.faults.schedule import schedule

FAULTS = 8
SHARDED = 3
"""Every third seed's workers are of two processes."""
MICRO = 7
"""Every seventh seed's steps are taken in micro-batches."""
HURRIED = 4
"""Every fourth seed's steps take little but work; the others mostly sleep, so that many schedules run side by side."""


def run(seed: int, reference: Reference, faults: int = FAULTS) -> dict[str, Any]:
    """One schedule and its checks.

    Raises:
        Violation: with the seed, the schedule and what everybody said.
    """
    began = time.monotonic()
    planned, processes = schedule(seed, faults), 2 if seed % SHARDED == 0 else 1
    micro_size, pace = 5 if seed % MICRO == 3 else None, 0.01 if seed % HURRIED == 1 else 0.05
    with tempfile.TemporaryDirectory() as scratch, Arena(Path(scratch), processes, micro_size, pace) as arena:
        try:
            for fault in planned:
                arena.do(fault)
            steps = arena.stop()
            worst = check(arena.trace, arena.checkpoints, steps, arena.commits, reference)
        except AssertionError as violation:
            told = "" if "\n---" in str(violation) else arena.tell()
            raise Violation(f"seed {seed}, {faults} faults: {violation}\n{told}") from violation
    seconds = round(time.monotonic() - began, 1)
    return {"seed": seed, "ok": True, "steps": steps, "difference": worst, "seconds": seconds}


def _try(seed: int) -> dict[str, Any]:
    try:
        return run(seed, _reference())
    except Exception:
        return {"seed": seed, "ok": False, "why": traceback.format_exc()}


def results(seeds: list[int], side_by_side: int) -> Iterator[dict[str, Any]]:
    """What became of each schedule, in the order in which they end."""
    # Processes of their own: each has its own fork server, and its own reference trajectory.
    with concurrent.futures.ProcessPoolExecutor(side_by_side, multiprocessing.get_context("spawn")) as pool:
        for future in concurrent.futures.as_completed([pool.submit(_try, seed) for seed in seeds]):
            yield future.result()


@functools.cache
def _reference() -> Reference:
    return Reference(job())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", default="0-499", help="first-last")
    parser.add_argument("--results", type=Path, default=Path("results.jsonl"), help="a line for each seed")
    parser.add_argument("--side-by-side", type=int, default=1)
    arguments = parser.parse_args()
    go_on(arguments.seeds, arguments.results, lambda left: results(left, arguments.side_by_side))


def go_on(seeds: str, path: Path, results: Callable[[list[int]], Iterable[dict[str, Any]]]) -> NoReturn:
    """Run the schedules of ``seeds`` that are not in the file yet, a line for each, and end the process."""
    first, last = map(int, seeds.split("-"))
    known = path.read_text().splitlines() if path.exists() else []
    done = {json.loads(line)["seed"] for line in known}
    left = [seed for seed in range(first, last + 1) if seed not in done]
    bad = 0
    with path.open("a", buffering=1) as file:
        for result in results(left):
            file.write(json.dumps(result) + "\n")
            bad += not result["ok"]
            print(result["why"] if not result["ok"] else result, flush=True)
    print(f"{len(left)} schedules, {bad} violated an invariant")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
