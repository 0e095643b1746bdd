"""What a search is for, and when it has enough."""

from typing import Annotated, Literal

from pydantic import Field

from adaptrain_api.base import DnsLabel, Integer, Model, Number, Rule, Text

METRIC = r"^[A-Za-z][-A-Za-z0-9_./]*$"
WITHOUT_TRAINING = ("parameters", "flops", "latency", "naswot", "synflow")
"""Metrics that a model has without training."""
MEASURED = (*WITHOUT_TRAINING, "energy")
"""Metrics that evaluators measure, and jobs don't."""

Metric = Annotated[Text, Field(pattern=METRIC, max_length=63)]


class Objective(Model):
    """What makes one architecture better than another."""

    metric: Annotated[
        Metric,
        Field(description=f"One that the trial reports, such as val/accuracy, or {', '.join(MEASURED)}."),
    ]
    goal: Annotated[Literal["maximize", "minimize"], Field(description="Which direction is better.")]


class Constraint(Model):
    """What an architecture must meet, however good it is otherwise."""

    metric: Annotated[Metric, Field(description="One that the trial reports.")]
    at_least: Annotated[Number | None, Field(description="Smallest value that is allowed.")] = None
    at_most: Annotated[Number | None, Field(description="Largest value that is allowed.")] = None

    rules = (
        Rule(
            cel="has(self.atLeast) || has(self.atMost)",
            message="give atLeast, atMost or both",
            check=lambda self: self.at_least is not None or self.at_most is not None,
        ),
        Rule(
            cel="!has(self.atLeast) || !has(self.atMost) || self.atLeast <= self.atMost",
            message="atLeast must be at most atMost: nothing could meet both",
            check=lambda self: self.at_least is None or self.at_most is None or self.at_least <= self.at_most,
        ),
    )


class Budget(Model):
    """When the search ends: whichever comes first."""

    trials: Annotated[Integer | None, Field(ge=1, le=1000000, description="Trials that end, however they end.")] = None
    seconds: Annotated[Integer | None, Field(ge=1, le=2**31 - 1, description="Seconds from the first trial on.")] = None
    evaluator_seconds: Annotated[
        Integer | None, Field(ge=1, le=2**53, description="Seconds that trials took, added up over all evaluators.")
    ] = None

    rules = (
        Rule(
            cel="has(self.trials) || has(self.seconds) || has(self.evaluatorSeconds)",
            message="budget needs trials, seconds or evaluatorSeconds, so that the search has an end",
            check=lambda self: {None} != {self.trials, self.seconds, self.evaluator_seconds},
        ),
    )


class Gate(Model):
    """What the winner has to reach."""

    metric: Annotated[Metric, Field(description="One that its trial reported.")]
    at_least: Annotated[Number | None, Field(description="Smallest value that passes.")] = None
    at_most: Annotated[Number | None, Field(description="Largest value that passes.")] = None
    better_than: Annotated[
        DnsLabel | None,
        Field(description="A job of this namespace whose model's value of this metric has to be surpassed."),
    ] = None

    rules = (
        Rule(
            cel="has(self.atLeast) || has(self.atMost) || has(self.betterThan)",
            message="a gate needs atLeast, atMost or betterThan",
            check=lambda self: {None} != {self.at_least, self.at_most, self.better_than},
        ),
    )
