"""What a job's coordinator tells the operator, and is told by it: the bodies of ``GET /progress`` and ``POST /trials``
on its HTTP port."""

import json
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from adaptrain_api.base import Open, Reading
from adaptrain_api.bounds import (
    LARGEST_INTEGER,
    LONGEST_TEXT,
    MOST_CHARACTERS,
    MOST_MEMBERS,
    MOST_PHASES,
    PREFERRED,
    Count,
    Duration,
    FewReadings,
    Moment,
    Name,
    Number,
    Small,
    Values,
    Words,
    first,
    importance,
    last,
)

CONTROL_PORT = 29400
"""Workers hold one authenticated connection each to this port of the coordinator."""
HTTP_PORT = 8080
"""``/progress`` (bearer token), ``/metrics`` and ``/healthz`` of the coordinator."""
WORKER_METRICS_PORT = 8081
"""``/metrics`` and ``/healthz`` of a worker."""

EXIT_INVALID = 64
"""A worker's exit code when the manifest can't be run as it is (unknown argument, missing module): retries are vain."""

BEST = "best/"
"""Begins the names of metrics that are of the best weights."""
MOST_CHANGES = 100
MOST_TOP = 100
MOST_ORDERS = 2000

Epoch: TypeAlias = Annotated[int, Field(ge=0, le=2**63 - 1)]


class Member(Open):
    """A worker in the membership."""

    id: Name
    """The pod's UID on a cluster."""
    name: Name
    step: Count
    joined: Moment
    """Unix time, seconds."""
    idle: bool = False
    """It has nothing to do, so that nothing is lost if it leaves."""
    trained: bool | None = None
    """Whether it has applied a step itself, or its script has run for a while; None: nobody knows."""


class Silent(Open):
    """A worker that was dropped because nothing was heard of it and whose connection never closed by itself."""

    id: Name
    name: Name
    since: Moment
    """Unix time of the last beat, seconds."""


class Change(Open):
    """One change of membership, in words."""

    time: Moment
    epoch: Epoch
    message: Words
    count: Count = 0
    """How many its coordinator told before it."""
    stall: Duration = None
    """Longest gap between two steps across the change, seconds."""


class Result(Open):
    """How training ended."""

    outcome: Literal["completed", "left", "failed"]
    step: Count
    epoch: Count
    message: Words = ""
    metrics: FewReadings = {}
    model: Annotated[str | None, Field(max_length=LONGEST_TEXT)] = None
    """Path of the best weights, relative to the checkpoint directory."""
    model_step: int | None = None
    """Step after which those weights were the best; 0: before the first one."""


class PhaseProgress(Open):
    """How far a phase is."""

    name: Name
    state: Literal["pending", "running", "complete"] = "pending"
    steps: Count = 0
    """Optimizer steps applied in it."""
    epochs: Count = 0
    """Passes over the training set that are complete."""
    metrics: FewReadings = {}
    """Newest validation metrics; of a complete phase, those of the weights that it left."""
    message: Words = ""
    """Why it ended."""


class SearchEnd(Open):
    """How a search ended."""

    outcome: Literal["complete", "failed"]
    reason: Annotated[str, Field(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", max_length=1024)]
    message: Words


class TrialWeights(Open):
    """The best weights of a trial, in a safetensors file; or the state of the network that all cells share."""

    path: Annotated[str, Field(pattern=r"^(trials/[0-9]+-[0-9a-f]{16}\.safetensors|supernet/[0-9]+-[0-9a-f]{16}\.pt)$")]
    """Relative to where the study is."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class TrialResult(Open):
    """A trial that ended well."""

    trial: Number
    metrics: FewReadings
    choices: Annotated[str, Field(max_length=MOST_CHARACTERS)]
    """What was chosen, as one line of JSON."""
    model: Small | None = None
    """The model that was built, as in a job."""
    parameters: Values = {}
    """The parameters' values, by name."""
    weights: TrialWeights | None = None
    """None: it left none."""


class TrialOrder(Open):
    """A trial that shall be a job."""

    number: Number
    given: Small
    """What the coordinator has to know of it, should it be another one by then: it comes back with each report."""
    model: Small | None = None
    """As in ``TrialResult``."""
    parameters: Values = {}


class TrialReport(Open):
    """How a trial goes that is a job."""

    number: Number
    given: Small
    """As it was ordered."""
    job: Name | None = None
    """The job's uid; None: it can't be made."""
    state: Literal["running", "complete", "failed"] = "running"
    step: Count = 0
    """Passes over the training set so far."""
    metrics: FewReadings = {}
    message: Words = ""
    """Why it failed."""
    started: Moment | None = None
    """Unix time, seconds."""


class TrialReports(Open):
    """What the operator knows of a search's trials, if they are jobs: all of it each time, so that none is missed."""

    trials: Annotated[list[TrialReport], Field(max_length=MOST_MEMBERS)] = []


class SearchProgress(Open):
    """How a search goes."""

    complete: Count = 0
    pruned: Count = 0
    failed: Count = 0
    running: Count = 0
    top: Annotated[list[TrialResult], first(MOST_TOP)] = []
    """The best, the best first."""
    pareto_size: Count = 0
    per_minute: Annotated[float, Field(ge=0, le=LARGEST_INTEGER, allow_inf_nan=False)] = 0.0
    evaluators: Count | None = None
    """How many there is something to try for; None: that isn't known yet, or trials are jobs."""
    storage_error: Words | None = None
    """Why the study can't be written right now."""
    unread: Words | None = None
    """What of the space no trial looks at, and what to do; empty: nothing."""
    supernet: Words | None = None
    """How the network is getting on that all cells share, in words; None: none is trained now."""
    end: SearchEnd | None = None
    orders: Annotated[list[TrialOrder], first(MOST_ORDERS)] = []
    """Trials under way, if they are jobs."""
    done: Annotated[list[Name], Field(max_length=MOST_MEMBERS)] = []
    """Uids of reported jobs that are of no more use: what they found is written, or not wanted."""


class Progress(Open):
    """A snapshot of the job as its coordinator sees it."""

    number: Number
    """The coordinator's own number; a lower one is never obeyed."""
    epoch: Epoch = 0
    """Membership epoch: number * 2**32 + changes seen by this coordinator."""
    state: Literal["waiting", "forming", "running", "done"] = "waiting"
    members: Annotated[list[Member], Field(max_length=MOST_MEMBERS)] = []
    joining: Annotated[list[Name], Field(max_length=MOST_MEMBERS)] = []
    """Ids of workers that are here and not among the members yet."""
    preparing: Annotated[list[Name], Field(max_length=MOST_MEMBERS)] = []
    """Those of them that still import, load and build: nobody waits for them."""
    silent: Annotated[list[Silent], last(MOST_MEMBERS)] = []
    recent_changes: Annotated[list[Change], last(MOST_CHANGES)] = []
    step: Count = 0
    data_epoch: Count = 0
    loss: Reading = None
    learning_rate: Reading = None
    batch_size: Count | None = None
    samples_per_second: Reading = None
    step_seconds: Duration = None
    metrics: FewReadings = {}
    """Newest validation metrics, by name."""
    best: FewReadings = {}
    checkpoint_step: Count | None = None
    checkpoint_time: Moment | None = None
    checkpoint_error: Words | None = None
    eta_seconds: Duration = None
    goodput: Duration = None
    """Useful time ÷ wall time since the first step: steps applied times a step's usual duration."""
    skipped_steps: Count = 0
    """Steps that were passed over since their loss or gradient was not finite."""
    phases: Annotated[list[PhaseProgress], first(MOST_PHASES)] = []
    result: Result | None = None
    search: SearchProgress | None = None


def headline(metrics: dict[str, float]) -> str | None:
    """The metric that a user watches: the validation's, which has one meaning while training and after its end. A
    test's only where there is none, and any other where there is neither."""
    return min((name for name in metrics if not name.startswith(BEST)), key=_watched, default=None)


def of_model(metrics: dict[str, float], name: str) -> float:
    """What a metric is of the weights that training leaves: the best ones, where they are told apart."""
    return metrics.get(f"{BEST}{name}", metrics[name])


def _watched(name: str) -> tuple[int, int, str]:
    kind = 0 if name.startswith("val/") else 1 if name.startswith("test/") else 2
    return kind, PREFERRED.index(name) if name in PREFERRED else len(PREFERRED), name


def foremost(metrics: dict[str, float], size: int) -> dict[str, float]:
    """The most important metrics, of which there are at most ``size`` bytes as JSON."""
    kept: dict[str, float] = {}
    for name in sorted(metrics, key=importance):
        size -= len(json.dumps({name: metrics[name]}))
        if size < 0:
            break
        kept[name] = metrics[name]
    return kept
