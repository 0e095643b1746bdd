"""What must hold of a disturbed job when it has ended."""

import json
from pathlib import Path

from tests.e2e.local_jobs import check_samples, tensors_of
from tests.faults.arena import Violation
from tests.faults.reference import Reference

TOLERANCE = 1e-9
"""Of a parameter in float64: sums are taken in another order when there are other members."""


def check(trace: Path, checkpoints: Path, steps: int, commits: dict[str, float], reference: Reference) -> float:
    """All of them. Returns the largest difference between a committed parameter and the undisturbed one.

    Which group applied a step says nothing: a member that was cut off trains on by itself until it notices, and if it
    is ahead when it comes back, its state counts. That state is what must be right.

    Raises:
        AssertionError: with what was found.
    """
    check_samples(trace, reference.samples, reference.batch, steps)
    check_commits(commits)
    return check_checkpoints(checkpoints, steps, reference)


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
