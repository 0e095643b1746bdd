"""What a job's coordinator tells the operator, and is told by it: the bodies of ``GET /progress`` and ``POST /trials``
on its HTTP port."""

from typing import Annotated, Any, Literal

from pydantic import Field

from adaptrain_api.base import Open, Readings

CONTROL_PORT = 29400
"""Workers hold one authenticated connection each to this port of the coordinator."""
HTTP_PORT = 8080
"""``/progress`` (bearer token), ``/metrics`` and ``/healthz`` of the coordinator."""
WORKER_METRICS_PORT = 8081
"""``/metrics`` and ``/healthz`` of a worker."""

EXIT_INVALID = 64
"""A worker's exit code when the manifest can't be run as it is (unknown argument, missing module): retries are vain."""


class Member(Open):
    """A worker in the membership."""

    id: str
    """The pod's UID on a cluster."""
    name: str
    step: int
    joined: float
    """Unix time, seconds."""
    idle: bool = False
    """It has nothing to do, so that nothing is lost if it leaves."""


class Silent(Open):
    """A worker that was dropped because nothing was heard of it and whose connection never closed by itself."""

    id: str
    name: str
    since: float
    """Unix time of the last beat, seconds."""


class Change(Open):
    """One change of membership, in words."""

    time: float
    epoch: int
    message: str
    count: int = 0
    """How many its coordinator told before it."""
    stall: float | None = None
    """Longest gap between two steps across the change, seconds."""


class Result(Open):
    """How training ended."""

    outcome: Literal["completed", "left", "failed"]
    step: int
    epoch: int
    message: str = ""
    metrics: Readings = {}
    model: str | None = None
    """Path of the best weights, relative to the checkpoint directory."""


class SearchEnd(Open):
    """How a search ended."""

    outcome: Literal["complete", "failed"]
    reason: str
    message: str


class TrialWeights(Open):
    """The best weights of a trial, in a safetensors file; or the state of the network that all cells share."""

    path: Annotated[str, Field(pattern=r"^(trials/[0-9]+-[0-9a-f]{16}\.safetensors|supernet/[0-9]+-[0-9a-f]{16}\.pt)$")]
    """Relative to where the study is."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class TrialResult(Open):
    """A trial that ended well."""

    trial: int
    metrics: Readings
    choices: str
    """What was chosen, as one line of JSON."""
    model: dict[str, Any] | None = None
    """The model that was built, as in a job."""
    parameters: dict[str, Any] = {}
    """The parameters' values, by name."""
    weights: TrialWeights | None = None
    """None: it left none."""


class TrialOrder(Open):
    """A trial that shall be a job."""

    number: int
    given: dict[str, Any]
    """What the coordinator has to know of it, should it be another one by then: it comes back with each report."""
    model: dict[str, Any] | None = None
    """As in ``TrialResult``."""
    parameters: dict[str, Any] = {}


class TrialReport(Open):
    """How a trial goes that is a job."""

    number: int
    given: dict[str, Any]
    """As it was ordered."""
    job: str | None = None
    """The job's uid; None: it can't be made."""
    state: Literal["running", "complete", "failed"] = "running"
    step: int = 0
    """Passes over the training set so far."""
    metrics: Readings = {}
    message: str = ""
    """Why it failed."""
    started: float | None = None
    """Unix time, seconds."""


class TrialReports(Open):
    """What the operator knows of a search's trials, if they are jobs: all of it each time, so that none is missed."""

    trials: list[TrialReport] = []


class SearchProgress(Open):
    """How a search goes."""

    complete: int = 0
    pruned: int = 0
    failed: int = 0
    running: int = 0
    top: list[TrialResult] = []
    """The best, the best first."""
    pareto_size: int = 0
    per_minute: float = 0.0
    evaluators: int | None = None
    """How many there is something to try for; None: that isn't known yet, or trials are jobs."""
    storage_error: str | None = None
    """Why the study can't be written right now."""
    unread: str | None = None
    """What of the space no trial looks at, and what to do; empty: nothing."""
    supernet: str | None = None
    """How the network is getting on that all cells share, in words; None: none is trained now."""
    end: SearchEnd | None = None
    orders: list[TrialOrder] = []
    """Trials under way, if they are jobs."""
    done: list[str] = []
    """Uids of reported jobs that are of no more use: what they found is written, or not wanted."""


class Progress(Open):
    """A snapshot of the job as its coordinator sees it."""

    number: int
    """The coordinator's own number; a lower one is never obeyed."""
    epoch: int = 0
    """Membership epoch: number * 2**32 + changes seen by this coordinator."""
    state: Literal["waiting", "forming", "running", "done"] = "waiting"
    members: list[Member] = []
    joining: list[str] = []
    """Ids of workers that are here and not among the members yet."""
    silent: list[Silent] = []
    recent_changes: list[Change] = []
    step: int = 0
    data_epoch: int = 0
    loss: float | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    samples_per_second: float | None = None
    step_seconds: float | None = None
    metrics: Readings = {}
    """Newest validation metrics, by name."""
    best: Readings = {}
    checkpoint_step: int | None = None
    checkpoint_time: float | None = None
    checkpoint_error: str | None = None
    eta_seconds: float | None = None
    goodput: float | None = None
    """Useful time ÷ wall time since the first step: steps applied times a step's usual duration."""
    skipped_steps: int = 0
    """Steps that were passed over since their loss or gradient was not finite."""
    result: Result | None = None
    search: SearchProgress | None = None


def headline(metrics: dict[str, float]) -> str | None:
    """The metric that tells a user most: the final test's, else the newest validation's."""
    preferred = ("test/accuracy", "val/accuracy", "val/loss")
    return next((name for name in (*preferred, *sorted(metrics)) if name in metrics), None)
