"""A search as the operator sees it, and the jobs that it has."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from adaptrain_api import search as api
from adaptrain_api.objects import Condition
from adaptrain_api.progress import Progress, SearchProgress
from adaptrain_api.search import ArchitectureSearchSpec
from adaptrain_api.search_status import ArchitectureSearchStatus
from adaptrain_api.training_status import TrainingJobStatus

from adaptrain_operator.core import naming
from adaptrain_operator.core.observed import Object


@dataclass(frozen=True, slots=True)
class Search:
    """An ArchitectureSearch."""

    kind: ClassVar[str] = api.KIND

    name: str
    namespace: str
    uid: str
    generation: int
    deleting: bool
    spec: ArchitectureSearchSpec
    status: ArchitectureSearchStatus

    @property
    def pool(self) -> str:
        """The name of the job whose workers are the evaluators."""
        return self.name + api.POOL

    @property
    def winner(self) -> str:
        """The name of the job that the winner is promoted to."""
        return self.name + api.WINNER

    def trial(self, number: int) -> str:
        """The name of a trial's job."""
        return f"{self.name}{api.TRIAL}{number}"


@dataclass(frozen=True, slots=True)
class SearchSeen:
    """Everything besides the search that a decision rests on."""

    jobs: Mapping[str, Object]
    """Jobs of its namespace that concern it, by name: its own, and a gate's."""
    progress: SearchProgress | None = None
    """The newest word of its coordinator."""
    current: bool = False
    """Whether it is of the coordinator that there is now, and new."""
    eta: float | None = None
    """Seconds left, as the coordinator estimates them."""
    trials: Mapping[str, Progress] = field(default_factory=dict)
    """The newest words of its trials' coordinators, by the job's name."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Why the API server refused a trial's job, by its name."""


def job_of(search: Search, name: str, spec: Object) -> Object:
    return {
        "apiVersion": naming.API_VERSION,
        "kind": "AdaptiveTrainingJob",
        "metadata": {
            "name": name,
            "namespace": search.namespace,
            "labels": {**naming.common_labels(search.name, "search"), naming.SEARCH_NAME: search.name},
            "ownerReferences": [naming.owner(search.name, search.uid, api.KIND)],
        },
        "spec": spec,
    }


def own(search: Search, job: Object | None) -> Object | None:
    """A job, if the search made it."""
    owners = [] if job is None else job["metadata"].get("ownerReferences") or []
    return job if any(owner["uid"] == search.uid for owner in owners) else None


def status_of(job: Object) -> TrainingJobStatus:
    status: TrainingJobStatus = TrainingJobStatus.model_validate(job.get("status") or {})
    return status


def condition_of(job: Object, type: str) -> Condition | None:
    return next((one for one in status_of(job).conditions if one.type == type), None)
