"""What an exit code of a worker means for its job, in the terms of a Kubernetes Job; and when trying again is vain."""

import re
from typing import Annotated, Literal

from pydantic import Field

from adaptrain_api.base import Integer, Model

MOST_STARTS = 3
"""Starts of a job that never trained that may fail alike."""
LONGEST_ERROR = 200

Action = Literal["FailJob", "Ignore", "Count"]


class OnExitCodes(Model):
    """Which exit codes a rule is for."""

    operator: Annotated[
        Literal["In", "NotIn"], Field(description="Whether the exit code is one of values, or none of them and not 0.")
    ]
    values: Annotated[
        list[Annotated[Integer, Field(ge=1, le=255)]],
        Field(min_length=1, max_length=255, description="Exit codes; 128 + n for a process that signal n ended."),
    ]


class PodFailureRule(Model):
    """What is done about a worker that ended by itself with some exit code."""

    action: Annotated[
        Action,
        Field(
            description="FailJob: the job fails at once. Ignore: the worker is replaced, and maxRestarts is not counted"
            " down. Count: it is counted against maxRestarts."
        ),
    ]
    on_exit_codes: OnExitCodes


class PodFailurePolicy(Model):
    """Rules for workers that end by themselves. Those that are taken away (evicted, preempted, deleted) never count."""

    ordered: Annotated[
        list[PodFailureRule],
        Field(alias="rules", min_length=1, max_length=20, description="The first that matches an exit code holds."),
    ]

    def action(self, exit_code: int) -> Action | None:
        """What the rules say of an exit code; None: nothing."""
        for rule in self.ordered:
            if exit_code and (exit_code in rule.on_exit_codes.values) == (rule.on_exit_codes.operator == "In"):
                return rule.action
        return None


def error_of(words: str) -> str:
    """What makes two failures alike: the last line of what was said, without what differs each time."""
    lines = words.strip().splitlines() or [""]
    return re.sub(r"0x[0-9a-f]+|\d+", "#", lines[-1])[:LONGEST_ERROR]
