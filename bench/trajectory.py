"""A ResNet on digits, AdamW, augmentation, with 10 kills and 10 resizes, beside undisturbed runs.

Value: the largest difference of any parameter in float64. The disturbed run goes on until all disturbances are done;
the undisturbed one, by a single worker, then takes as many steps. Then the same in float32, where the order of sums
decides the last digits: the loss at the end lies within the spread of five undisturbed runs by 1 to 4 workers, which is
their mean ± ``WITHIN`` standard deviations.
"""

import math
import random
import signal
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from adaptrain.data.registry import load_data
from adaptrain.local.processes import LocalJob
from adaptrain.models.registry import build_model
from torch.nn import functional as F

from bench.report import emit
from tests.e2e.local_jobs import (
    check_samples,
    final_tensors,
    finished,
    job,
    largest_difference,
    running,
    step_of,
    wait_for,
)

DISTURBANCES, LEAST_STEPS = 10, 400
SAMPLES, BATCH = 1078, 64
WORKERS = (1, 2, 3, 4, 2)
"""Of the undisturbed float32 runs."""
WITHIN = 2.776 * math.sqrt(1 + 1 / len(WORKERS))
"""Student's t for 4 degrees of freedom, 95 % prediction interval: where a sixth such run lies 19 times of 20."""


def model(dtype: str) -> dict[str, Any]:
    return {"name": "resnet", "args": {"depth": 8, "width": 8, "dtype": dtype}}


def disturbed(here: Path, dtype: str) -> int:
    """Run, kill, let join and leave. Returns the steps taken, of which no sample was lost or repeated."""
    chance = random.Random(7)
    acts = ["kill"] * DISTURBANCES + ["join", "leave"] * (DISTURBANCES // 2)
    chance.shuffle(acts)
    with LocalJob(job(model=model(dtype)), checkpoints=here, trace=here / "trace") as local:
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
        steps = max(r.step for n in local.workers if (r := local.result(n)) is not None)
    assert check_samples(here / "trace", SAMPLES, BATCH) == steps
    print(f"{dtype}: {steps} steps, no sample lost, none repeated", flush=True)
    return steps


def undisturbed(here: Path, dtype: str, steps: int, workers: int) -> None:
    """As many steps by so many workers, from the first one on."""
    with LocalJob(
        job(minimum=workers, model=model(dtype), phase={"stop": {"steps": steps}}), checkpoints=here
    ) as local:
        local.start_coordinator()
        for _ in range(workers):
            local.start_worker()
        finished(local)


def final_loss(checkpoints: Path) -> float:
    """Mean cross-entropy over the training samples with a run's last weights."""
    spec = job(model=model("float64")).spec
    assert spec.model is not None
    assert spec.data is not None
    data = load_data(spec.data)
    made = build_model(spec.model, data).eval()
    weights = final_tensors(checkpoints)
    made.load_state_dict({name: weights[f"model.{name}"] for name in made.state_dict()})
    x, y = data.train.fetch(torch.arange(len(data.train)))
    with torch.no_grad():
        return float(F.cross_entropy(made(x.double()), y))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch)
        steps = disturbed(here / "disturbed", "float64")
        undisturbed(here / "undisturbed", "float64", steps, 1)
        value = largest_difference(here / "disturbed", here / "undisturbed")
        taken = disturbed(here / "disturbed32", "float32")
        loss, others = final_loss(here / "disturbed32"), []
        for number, workers in enumerate(WORKERS):
            undisturbed(here / f"{number}", "float32", taken, workers)
            others.append(final_loss(here / f"{number}"))
            print(f"float32, {workers} workers: loss {others[-1]:.6g}, disturbed {loss:.6g}", flush=True)
    mean, spread = statistics.mean(others), WITHIN * statistics.stdev(others)
    ok = value <= 1e-9 and min(steps, taken) >= LEAST_STEPS and abs(loss - mean) <= spread
    emit("trajectory", value, "largest parameter difference in float64", "undisturbed single worker", 0.0, ok,
         steps=steps, loss=loss, undisturbed_losses=others, spread=[mean - spread, mean + spread])  # fmt: skip
