"""What is, of an ArchitectureSearch."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from adaptrain_api.base import ListMap, Open, Readings
from adaptrain_api.objects import Conditions, ObservedGeneration
from adaptrain_api.search.goals import Budget


class TrialSummary(Open):
    """A trial that ended, in few words."""

    trial: Annotated[int, Field(description="Its number in the study, from 0.")]
    values: Annotated[Readings, Field(max_length=20, description="Of the objectives and constraints.")]
    architecture: Annotated[str, Field(description="What was chosen, as one line of JSON.")]


class TrialCounts(Open):
    """How many trials there are, by state."""

    complete: Annotated[int, Field(description="That ended with all values.")] = 0
    pruned: Annotated[int, Field(description="That were stopped early, since they promised little.")] = 0
    failed: Annotated[int, Field(description="That ended without values.")] = 0
    running: Annotated[int, Field(description="That are under way.")] = 0


class OwnJob(Open):
    """A job that the operator made for the search."""

    name: Annotated[str, Field(description="Of the job.")]
    uid: Annotated[str, Field(description="Of the job: another one of its name is none of the search.")]


class ArchitectureSearchStatus(Open):
    """What is. Written by the operator alone."""

    phase: Annotated[
        Literal["Pending", "Running", "Suspended", "Succeeded", "Failed"] | None,
        Field(description="What the search is doing, in one word; the conditions say more."),
    ] = None
    observed_generation: ObservedGeneration = None
    conditions: Conditions = []
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
    start_time: Annotated[
        datetime | None, Field(description="When the search was begun, or begun again after a suspension.")
    ] = None
    completion_time: Annotated[datetime | None, Field(description="When the search ended, well or badly.")] = None
