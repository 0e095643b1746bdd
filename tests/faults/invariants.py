"""What must hold of a disturbed job when it has ended."""

import json
from pathlib import Path

from adaptrain.elastic.trace import read_lineage

from tests.e2e.local_jobs import tensors_of
from tests.faults.arena import Violation
from tests.faults.reference import Reference

TOLERANCE = 1e-9
"""Of a parameter in float64: sums are taken in another order when there are other members."""


def check(trace: Path, checkpoints: Path, steps: int, commits: dict[str, float], reference: Reference) -> float:
    """All of them. Returns the largest difference between a committed parameter and the undisturbed one.

    Raises:
        Violation: with what was found.
    """
    check_samples(trace, steps, reference)
    check_commits(commits)
    return check_checkpoints(checkpoints, steps, reference)


def check_samples(trace: Path, steps: int, reference: Reference) -> None:
    """Every sample was applied exactly once in each pass, in one lineage."""
    lineage = {step: applied for step, applied in read_lineage(trace).items() if step < steps}
    if list(lineage) != list(range(steps)):
        missing = sorted(set(range(steps)) - set(lineage))
        raise Violation(f"of {steps} steps these were never applied: {missing[:10]}")
    seen: dict[int, list[int]] = {}
    group = 0
    for step, applied in lineage.items():
        if applied.group < group:
            raise Violation(f"step {step} was applied by group {applied.group}, a step before it by {group}")
        group = applied.group
        so_far = seen.setdefault(applied.epoch, [])
        if applied.cursor != len(so_far):
            raise Violation(f"step {step} begins at sample {applied.cursor} of its pass, not at {len(so_far)}")
        if len(applied.samples) != min(reference.batch, reference.samples - applied.cursor):
            raise Violation(f"step {step} took {len(applied.samples)} samples")
        so_far += applied.samples
    *complete, last = seen.values()
    for number, ids in enumerate(complete):
        if sorted(ids) != list(range(reference.samples)):
            raise Violation(f"pass {number} lost or repeated samples")
    if len(set(last)) != len(last):
        raise Violation("the last pass repeated samples")


def check_commits(commits: dict[str, float]) -> None:
    """Once a lineage has committed, no older one does."""
    newest = 0
    for name, _ in sorted(commits.items(), key=lambda item: item[1]):
        lineage = int(name.partition(".")[2]) >> 32
        if lineage < newest:
            raise Violation(f"{name} was committed after lineage {newest} had begun: {commits}")
        newest = lineage


def check_checkpoints(folder: Path, steps: int, reference: Reference) -> float:
    """The last step was saved, and every checkpoint is what an undisturbed run has after as many steps."""
    found = {path: json.loads((path / "counters.json").read_text())["step"] for path in folder.glob("step-*")}
    if steps not in found.values():
        raise Violation(f"workers left after step {steps}, and the newest checkpoint is of step {max(found.values())}")
    worst = 0.0
    for path, step in found.items():
        expected = reference.after(step)
        for name, value in tensors_of(path, ("model.", "optimizer.")).items():
            difference = float((value - expected[name]).abs().max())
            if not difference <= TOLERANCE:
                raise Violation(f"{path.name}: {name} differs by {difference} from the undisturbed run")
            worst = max(worst, difference)
    return worst
