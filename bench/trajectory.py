"""A ResNet on digits in float64, AdamW, augmentation, with 10 kills and 10 resizes, beside an undisturbed run.

Value: the largest difference of any parameter. The disturbed run goes on until all disturbances are done; the
undisturbed one, by a single worker, then takes as many steps.
"""

import random
import signal
import tempfile
from pathlib import Path

from adaptrain.local import LocalJob

from bench.report import emit
from tests.e2e.local_jobs import check_samples, finished, job, largest_difference, running, step_of, wait_for

DISTURBANCES, LEAST_STEPS = 10, 400
MODEL = {"model": {"name": "resnet", "args": {"depth": 8, "width": 8, "dtype": "float64"}}}
SAMPLES, BATCH = 1078, 64


def disturbed(checkpoints: Path, trace: Path) -> int:
    """Run, kill, let join and leave. Returns the steps taken."""
    chance = random.Random(7)
    acts = ["kill"] * DISTURBANCES + ["join", "leave"] * (DISTURBANCES // 2)
    chance.shuffle(acts)
    with LocalJob(job(**MODEL), checkpoints=checkpoints, trace=trace) as local:
        local.start_coordinator()
        size = 3
        for _ in range(size):
            local.start_worker()
        running(local, size)
        for number, act in enumerate(acts):
            at = step_of(local) + LEAST_STEPS // len(acts)
            wait_for("steps", lambda at=at: step_of(local) >= at, local)
            victim = chance.choice(local.alive())
            if size == 1:
                act = "join"  # the last one stays
            if act == "join":
                local.start_worker()
                size += 1
            elif act == "leave":
                local.signal(victim, signal.SIGTERM)
                size -= 1
            else:
                local.signal(victim, signal.SIGKILL)
                local.start_worker()
            wait_for("the worker's end", lambda v=victim, n=act: n == "join" or v not in local.alive(), local)
            running(local, size)
            print(f"{number + 1}: {act} at step {step_of(local)}, {size} workers", flush=True)
        for number in local.alive():
            local.signal(number, signal.SIGTERM)
        wait_for("all to leave", lambda: not local.alive(), local)
        return max(r.step for n in local.workers if (r := local.result(n)) is not None)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch)
        steps = disturbed(here / "disturbed", here / "trace")
        assert check_samples(here / "trace", SAMPLES, BATCH) == steps
        print(f"{steps} steps: no sample lost, none repeated", flush=True)
        with LocalJob(job(**MODEL, phase={"stop": {"steps": steps}}), checkpoints=here / "undisturbed") as local:
            local.start_coordinator()
            local.start_worker()
            finished(local)
        value = largest_difference(here / "disturbed", here / "undisturbed")
    emit("trajectory", value, "largest parameter difference", "undisturbed single worker", 0.0,
         value <= 1e-9 and steps >= LEAST_STEPS, steps=steps)  # fmt: skip
