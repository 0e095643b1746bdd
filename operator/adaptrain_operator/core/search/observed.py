"""A search as the operator sees it, and the jobs that it has."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from adaptrain_api.contracts.coordinator_api import Progress, SearchProgress
from adaptrain_api.objects import Condition
from adaptrain_api.search import job as api
from adaptrain_api.search.job import ArchitectureSearchSpec
from adaptrain_api.search.status import ArchitectureSearchStatus
from adaptrain_api.training.status import TrainingJobStatus

from adaptrain_operator.core import naming
from adaptrain_operator.core.objects.ownership import verdict
from adaptrain_operator.core.observed import Object
from adaptrain_operator.core.stored_status import read_known, read_status


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

    def number(self, name: str) -> int | None:
        """The number of the trial whose job has this name; None: it is no trial's."""
        number = name.removeprefix(f"{self.name}{api.TRIAL}")
        is_trial = number != name and number.isascii() and number.isdigit() and len(number) <= api.TRIAL_DIGITS
        return int(number) if is_trial and name == self.trial(int(number)) else None

    @property
    def record(self) -> dict[str, str]:
        """The uids of the jobs that were made for it, by name."""
        return {one.name: one.uid for one in self.status.jobs}


@dataclass(frozen=True, slots=True)
class SearchObserved:
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
    """A job, if the search made it, as the operator wrote down: labels and owners are anybody's to write."""
    if job is None:
        return None
    meta = job["metadata"]
    uid = search.record.get(meta["name"])
    return job if uid is not None and uid == meta.get("uid") else None


def claimed(search: Search, job: Object | None) -> bool:
    """Whether a job that is not on record says that the search controls it: one that was made just before the operator
    was killed, or another's that pretends to be."""
    if job is None or own(search, job) is not None:
        return False
    owners = job["metadata"].get("ownerReferences") or []
    return any(owner.get("controller") and owner.get("uid") == search.uid for owner in owners)


def stranger(search: Search, job: Object | None) -> tuple[str, str] | None:
    """Why a name that the search needs is not free for it, in a word and in a sentence."""
    if job is None or own(search, job) is not None:
        return None
    return verdict(job_of(search, job["metadata"]["name"], {}), job)


def status_of(job: Object) -> TrainingJobStatus:
    return read_status(job.get("status") or {})


def read_search_status(raw: Mapping[str, Any]) -> ArchitectureSearchStatus:
    return read_known(ArchitectureSearchStatus, raw)


def condition_of(job: Object, type: str) -> Condition | None:
    return next((one for one in status_of(job).conditions if one.type == type), None)
