"""What is, of an ArchitectureSearch."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from adaptrain_api.base import ListMap, Open, Readings
from adaptrain_api.objects import Condition
from adaptrain_api.search_goals import Budget


class TrialSummary(Open):
    """A trial that ended, in few words."""

    trial: int
    values: Annotated[Readings, Field(max_length=20, description="Of the objectives and constraints.")]
    architecture: Annotated[str, Field(description="What was chosen, as one line of JSON.")]


class TrialCounts(Open):
    """How many trials there are, by state."""

    complete: int = 0
    pruned: int = 0
    failed: int = 0
    running: int = 0


class OwnJob(Open):
    """A job that the operator made for the search."""

    name: str
    uid: str


class ArchitectureSearchStatus(Open):
    """What is. Written by the operator alone."""

    phase: Literal["Pending", "Running", "Suspended", "Succeeded", "Failed"] | None = None
    observed_generation: int | None = None
    conditions: Annotated[list[Condition], ListMap("type")] = []
    evaluators: Annotated[
        str | None, Field(description="Evaluators ready/wanted; with execution Jobs, trials' jobs that run/at most.")
    ] = None
    trials: TrialCounts | None = None
    progress: Annotated[str | None, Field(description="Trials ended/wanted.")] = None
    best: Annotated[str | None, Field(description="The best trial's first objective.")] = None
    top: Annotated[list[TrialSummary], Field(description="The best trials, at most 10.")] = []
    pareto_size: Annotated[int | None, Field(description="Trials that no other one surpasses in every objective.")] = (
        None
    )
    evaluations_per_minute: Annotated[float | None, Field(description="Of the last minutes.")] = None
    eta: Annotated[str | None, Field(description="Time left, estimated.")] = None
    budget: Annotated[Budget | None, Field(description="That the search was run with last.")] = None
    jobs: Annotated[
        list[OwnJob],
        ListMap("name"),
        Field(description="Jobs that the operator made for the search: no other is believed to be its."),
    ] = []
    promoted_job: Annotated[str | None, Field(description="The job that trains the winner.")] = None
    start_time: datetime | None = None
    completion_time: datetime | None = None
