"""Local jobs that are disturbed, and what must hold of them afterwards. Used by tests and benchmarks alike."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from adaptrain.elastic.state.sample_log import read_lineage
from adaptrain.local.processes import LocalJob
from adaptrain_api.contracts.coordinator_api import Progress
from adaptrain_api.training.job import AdaptiveTrainingJob
from torch.distributed.checkpoint import HuggingFaceStorageReader, load

WAIT_SECONDS = 120.0


def job(name: str = "test", minimum: int = 1, **spec: Any) -> AdaptiveTrainingJob:
    """A job on digits; ``spec`` replaces parts of it."""
    phase = {
        "name": "train",
        "type": "supervised",
        "optimizer": {"name": "adamw", "learningRate": 0.001},
        "batch": {"size": 64},
        "augmentation": {"shiftPixels": 1},
        "stop": {"steps": 100000},
    }
    base: dict[str, Any] = {
        "workers": {"min": minimum, "max": 10},
        "model": {"name": "mlp", "args": {"dtype": "float64"}},
        "data": {"name": "digits"},
        "phases": [phase | spec.pop("phase", {})],
    }
    return AdaptiveTrainingJob.model_validate({"metadata": {"name": name}, "spec": base | spec})


def wait_for(what: str, look: Callable[[], Any], local: LocalJob | None = None, seconds: float = WAIT_SECONDS) -> Any:
    """What ``look`` returns as soon as it is true.

    Raises:
        TimeoutError: with what the processes said.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := look():
            return found
        time.sleep(0.02)
    logs = ""
    if local is not None:
        names = [f"worker-{n}" for n in local.workers] + ["coordinator-1", "coordinator-2"]
        logs = "\n".join(f"--- {name}\n{local.log(name)[-1500:]}" for name in names)
        logs += f"\nprogress: {local.progress()}\nexit codes: {[(n, p.exitcode) for n, p in local.workers.items()]}"
    raise TimeoutError(f"{what}: not within {seconds:.0f} s\n{logs}")


def running(local: LocalJob, size: int) -> Progress:
    """Wait until exactly so many members train together."""

    def look() -> Progress | None:
        p = local.progress()
        return p if p is not None and p.state == "running" and len(p.members) == size else None

    found: Progress = wait_for(f"{size} members", look, local)
    return found


def finished(local: LocalJob, seconds: float = 600.0) -> Progress:
    """Wait for the end of training and of all workers."""

    def look() -> Progress | None:
        p = local.progress()
        return p if p is not None and p.result is not None and not local.alive() else None

    found: Progress = wait_for("the end", look, local, seconds)
    return found


def step_of(local: LocalJob) -> int:
    p = local.progress()
    return max([m.step for m in p.members], default=0) if p is not None else 0


def check_samples(trace: Path, samples: int, batch: int, steps: int | None = None) -> int:
    """Every pass applied every sample exactly once, in batches of the right size. Returns the number of steps.

    Args:
        steps: how many there must be; what was applied beyond them was given up for an older checkpoint.
    """
    lineage = {step: applied for step, applied in read_lineage(trace).items() if steps is None or step < steps}
    assert list(lineage) == list(range(len(lineage) if steps is None else steps)), "a step is missing"
    seen: dict[tuple[int, int], list[int]] = {}
    for step, applied in lineage.items():
        assert len(applied.samples) == min(batch, samples - applied.cursor), f"step {step}: a wrong number of samples"
        assert applied.cursor == len(seen.setdefault((applied.phase, applied.epoch), [])), (
            f"step {step}: the cursor jumped"
        )
        seen[applied.phase, applied.epoch] += applied.samples
    *complete, last = seen.values()
    for ids in complete:
        assert sorted(ids) == list(range(samples)), "a pass lost or repeated samples"
    assert len(set(last)) == len(last), "the last pass repeated samples"
    return len(lineage)


def final_tensors(checkpoints: Path) -> dict[str, torch.Tensor]:
    """Model and optimizer of the newest checkpoint, read with nothing but torch."""
    newest = max(checkpoints.glob("step-*"), key=lambda p: int(p.name.split(".")[0].split("-")[1]))
    return tensors_of(newest, ("model.", "optimizer."))


def tensors_of(checkpoint: Path, prefixes: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Those tensors of a checkpoint whose names begin so, read with nothing but torch."""
    reader = HuggingFaceStorageReader(str(checkpoint))
    wanted = {
        name: torch.empty(meta.size, dtype=meta.properties.dtype)
        for name, meta in reader.read_metadata().state_dict_metadata.items()
        if name.startswith(prefixes)
    }
    load(wanted, storage_reader=reader, no_dist=True)
    return wanted


def largest_difference(one: Path, other: Path) -> float:
    a, b = final_tensors(one), final_tensors(other)
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)
