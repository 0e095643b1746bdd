"""What our resources have in common, and what they refer to."""

import re
from datetime import datetime
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from adaptrain_api.base import DnsSubdomain, ListMap, Model, Open, Rule, Text

GROUP = "adaptrain.io"
VERSION = "v1alpha1"

MAX_NAME = 40
"""Longest job name: every child's name and label (``<job>-coordinator-<number>``) must fit into 63 characters."""


MANAGER = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9/._~-]+$"
OPERATOR = "adaptrain.io/operator"
"""What ``managedBy`` says of a job that this operator runs, if it says anything."""


class LocalObjectReference(Model):
    """A reference to an object in the job's namespace."""

    name: Annotated[DnsSubdomain, Field(description="Name of a Secret in the job's namespace.")]


def immutable(field: str, what: str = "job") -> Rule:
    """A field that stays as it was when the object was made."""
    return Rule(
        cel=f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})",
        message=f"{field} can't be changed while the {what} exists: create a new {what}",
        path=f".{field}",
    )


class ObjectMeta(Model):
    """The part of Kubernetes' metadata that rules and the trainer read; everything else passes."""

    model_config = {**Model.model_config, "extra": "allow"}

    name: Text
    namespace: str | None = None
    uid: str | None = None


ObservedGeneration: TypeAlias = Annotated[
    int | None, Field(description="The generation of the spec that this was written for.")
]


class Condition(Open):
    """metav1.Condition."""

    type: Annotated[str, Field(description="What it is about, in CamelCase.")]
    status: Annotated[Literal["True", "False", "Unknown"], Field(description="Whether it holds.")]
    reason: Annotated[str, Field(description="Why, in one word, for programs.")]
    message: Annotated[str, Field(description="Why, and what to do, for people.")]
    last_transition_time: Annotated[datetime, Field(description="When the status changed last.")]
    observed_generation: ObservedGeneration = None


Conditions: TypeAlias = Annotated[
    list[Condition], ListMap("type"), Field(description="What holds, each with its reason and what to do.")
]


def name_rules(longest: int) -> tuple[Rule, ...]:
    """What the names of our resources must be, since others are made from them."""
    return (
        Rule(
            cel=f"size(self.metadata.name) <= {longest}",
            message=f"metadata.name must have at most {longest} characters, so that its pods' names fit: shorten it",
            check=lambda self: len(self.metadata.name) <= longest,
        ),
        Rule(
            cel="self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
            message="metadata.name must start with a letter and hold only lower-case letters, digits and dashes,"
            " since a Service is named after it",
            check=lambda self: re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", self.metadata.name) is not None,
        ),
    )
