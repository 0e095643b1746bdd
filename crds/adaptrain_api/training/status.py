"""What is, of an AdaptiveTrainingJob."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from adaptrain_api.base import Open, Reading, Readings
from adaptrain_api.objects import Conditions, ObservedGeneration

MOST_METRICS = 64
"""Metrics in a status."""


class TrainedModel(Open):
    """The best weights that the job left."""

    path: Annotated[
        str, Field(description="Of the safetensors file: its path in the checkpoint volume, or its whole URI.")
    ]
    metric: Annotated[str | None, Field(description="What the best weights were chosen by.")] = None
    value: Annotated[Reading, Field(description="The metric of these weights.")] = None
    step: Annotated[int | None, Field(description="Optimizer steps after which the weights were as they are.")] = None


class AvoidedNode(Open):
    """A node that went silent: no worker is placed there until its Lease is renewed."""

    name: Annotated[str, Field(description="Of the Node.")]
    since: Annotated[datetime, Field(description="When its silence was noticed.")]


class RecentChange(Open):
    """Something that happened to the workers as a group, in words."""

    change: Annotated[str, Field(description="Its coordinator's number and its own.")]
    time: Annotated[datetime, Field(description="When, by the coordinator's clock.")]
    message: Annotated[str, Field(description="What happened, and to which worker.")]
    stall_seconds: Annotated[
        Reading, Field(description="The longest time, seconds, that a worker stood still for it beyond a usual step.")
    ] = None


class FailedStarts(Open):
    """Workers of one template that failed before any of them had trained."""

    template: Annotated[str, Field(description="Hash of the template.")]
    count: Annotated[int, Field(description="How many failed in a row.")] = 0
    error: Annotated[str, Field(description="What the last one said last.")] = ""


class PhaseStatus(Open):
    """How far a phase is."""

    name: Annotated[str, Field(description="As in spec.phases.")]
    state: Annotated[
        Literal["Pending", "Running", "Complete"], Field(description="Whether it is to come, under way or over.")
    ] = "Pending"
    steps: Annotated[int, Field(description="Optimizer steps applied in it.")] = 0
    epochs: Annotated[int, Field(description="Passes over the training set that are complete.")] = 0
    metrics: Annotated[
        Readings,
        Field(
            max_length=MOST_METRICS,
            description="Newest validation metrics; of a complete phase, those of the weights that it left.",
        ),
    ] = {}
    message: Annotated[str, Field(description="Why it ended.")] = ""


class TrainingJobStatus(Open):
    """What is. Written by the operator alone."""

    phase: Annotated[
        Literal["Pending", "Running", "Suspended", "Succeeded", "Failed"] | None,
        Field(description="What the job is doing, in one word; the conditions say more."),
    ] = None
    observed_generation: ObservedGeneration = None
    conditions: Conditions = []
    replicas: Annotated[int | None, Field(description="Worker pods that exist (what /scale reads).")] = None
    ready_replicas: Annotated[int | None, Field(description="Workers that take part in training.")] = None
    selector: Annotated[str | None, Field(description="Label selector of the worker pods, for /scale.")] = None
    workers: Annotated[str | None, Field(description="Workers ready/wanted, while the job is not finished.")] = None
    step: Annotated[int | None, Field(description="Optimizer steps applied.")] = None
    epoch: Annotated[
        int | None, Field(description="Passes over the training set that are complete, in the phase that runs.")
    ] = None
    loss: Annotated[Reading, Field(description="Training loss, mean of the last steps.")] = None
    metric: Annotated[
        str | None,
        Field(description="The validation metric: the newest; once training is complete, that of the model."),
    ] = None
    metrics: Annotated[
        Readings,
        Field(
            max_length=MOST_METRICS,
            description="What training had reached when it was complete; best/NAME is of the best epoch.",
        ),
    ] = {}
    phases: Annotated[list[PhaseStatus], Field(description="The phases of spec.phases, and how far each is.")] = []
    eta: Annotated[str | None, Field(description="Time left, estimated, for people.")] = None
    eta_seconds: Annotated[int | None, Field(description="Time left, estimated, seconds.")] = None
    goodput: Annotated[
        str | None, Field(description="Part of the time since the first step that was spent on steps that count.")
    ] = None
    goodput_ratio: Annotated[Reading, Field(description="The same as a number, 0 to 1.")] = None
    skipped_steps: Annotated[
        int | None, Field(description="Steps passed over since their loss or gradient was not finite; absent: none.")
    ] = None
    recent_changes: Annotated[
        list[RecentChange], Field(description="The newest changes of membership, who and why and what they cost.")
    ] = []
    model: TrainedModel | None = None
    next_worker: Annotated[int | None, Field(description="Number of the next worker pod; never used twice.")] = None
    coordinator: Annotated[int | None, Field(description="Number of the newest coordinator.")] = None
    restarts: Annotated[int | None, Field(description="Failures of the workers' own that were counted.")] = None
    last_failure_time: Annotated[datetime | None, Field(description="When the last counted failure happened.")] = None
    failed_workers: Annotated[
        list[int], Field(description="Numbers of failed workers that were counted; of those that are gone, the newest.")
    ] = []
    trained_template: Annotated[
        str | None, Field(description="Hash of the newest template whose workers have trained.")
    ] = None
    failed_starts: FailedStarts | None = None
    avoided_nodes: Annotated[list[AvoidedNode], Field(description="Nodes that get no worker for now.")] = []
    source_commit: Annotated[str | None, Field(description="Commit of script.source.git that all workers run.")] = None
    start_time: Annotated[
        datetime | None, Field(description="When the job was begun, or begun again after a suspension.")
    ] = None
    running_time: Annotated[
        datetime | None, Field(description="When training began after startTime; absent: it has not begun.")
    ] = None
    completion_time: Annotated[datetime | None, Field(description="When the job ended, well or badly.")] = None
