"""What a checkpoint is of: the part of a job's manifest that decides what is trained, and not for how long or where."""

import json
from dataclasses import dataclass, field
from typing import Any

from adaptrain_api.training.job import AdaptiveTrainingJob, dump

MADE = {"model", "data", "phases", "initial_weights", "script", "seed"}
"""Fields of the spec."""
BESIDES: dict[str, Any] = {
    "phases": {"__all__": {"name": True, "stop": True, "non_finite": True, "batch": {"micro_size"}}},
    "initial_weights": {"volume"},
    "script": {"source": {"git": {"secret_ref"}}},
}
"""Fields inside them that don't decide what is trained."""
SHOWN = 200
"""Characters of a value in a message."""


@dataclass(frozen=True)
class Origin:
    """Of a job's checkpoints."""

    job: str = ""
    """The job's uid."""
    made: dict[str, Any] = field(default_factory=dict)
    """What is trained. Fields at their default are left out, so that a release may add some."""
    budget: list[Any] = field(default_factory=list)
    """When each phase ends."""
    resume_from: str | None = None
    """A checkpoint that the job may begin with, whatever that is of."""

    @classmethod
    def of(cls, job: AdaptiveTrainingJob) -> "Origin":
        """Of a job's manifest."""
        given = job.spec.model_dump(
            mode="json", by_alias=True, exclude_none=True, exclude_defaults=True, include=MADE, exclude=BESIDES
        )
        budget = [dump(phase.stop) for phase in job.spec.phases or []]
        checkpoint = job.spec.checkpoint
        resume_from = checkpoint.resume_from if checkpoint is not None else None
        return cls(job.metadata.uid or "", given, budget, resume_from)

    def told(self) -> dict[str, Any]:
        """What a manifest tells."""
        return {"job": self.job, "made": self.made, "budget": self.budget}

    def differs(self, told: dict[str, Any]) -> str | None:
        """The first difference to what a checkpoint's manifest tells, in words; None: it is of the same training."""
        return _difference("spec", told.get("made", {}), self.made)


def _difference(path: str, there: Any, here: Any) -> str | None:
    if there == here:
        return None
    if isinstance(there, dict) and isinstance(here, dict):
        names = [*here, *(name for name in there if name not in here)]
        found = (_difference(f"{path}.{name}", there.get(name), here.get(name)) for name in names)
        return next(filter(None, found), None)
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        found = (_difference(f"{path}[{n}]", *both) for n, both in enumerate(zip(there, here, strict=True)))
        return next(filter(None, found), None)
    return f"{path} is {_shown(there)} there, and {_shown(here)} in this manifest"


def _shown(value: Any) -> str:
    return "not given" if value is None else json.dumps(value)[:SHOWN]
