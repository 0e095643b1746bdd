"""From what was chosen to a trial that can be run, and whether a search makes sense before its first trial."""

from collections.abc import Mapping
from typing import Any

from adaptrain_api.components import ModelSource
from adaptrain_api.errors import explain
from adaptrain_api.search.goals import MEASURED
from adaptrain_api.search.job import ArchitectureSearchSpec, metrics_named
from adaptrain_api.search.job import Trial as TrialSpec
from adaptrain_api.search.space import set_parameter
from adaptrain_api.training.job import dump
from pydantic import ValidationError

from adaptrain.errors import InvalidJob
from adaptrain.search.spaces.parameters import values

MODEL = {"name": "mlp"}
"""Stands for the one that the space makes."""
REPORTED = ("val/accuracy", "val/loss", "test/accuracy", "test/loss", "train/loss", *MEASURED)
"""What a trial that trains reports."""


def resolve(
    trial: TrialSpec, model: dict[str, Any] | None, parameters: Mapping[str, Any]
) -> tuple[TrialSpec, ModelSource]:
    """A trial with the chosen model and parameters in their places.

    Raises:
        InvalidJob: a parameter's name or value doesn't fit.
    """
    raw = dump(trial)
    if model is not None:
        raw["model"] = model
    try:
        for name, value in parameters.items():
            set_parameter(raw, name, value)
        chosen: TrialSpec = TrialSpec.model_validate(raw)
    except ValidationError as error:
        raise InvalidJob(f"space.parameters: {_told(parameters)}: {explain(error)}") from error
    except ValueError as error:
        raise InvalidJob(f"space.parameters: {_told(parameters)}: {error}") from error
    assert chosen.model is not None
    return chosen, chosen.model


def check(spec: ArchitectureSearchSpec) -> None:
    """Hold a search that trains against what trials take and report. A function takes and reports what it likes.

    Raises:
        InvalidJob: a parameter sets nothing that a trial has, or to what it can't be; nothing reports a metric.
    """
    if spec.trial.callable is not None:
        return
    for metric in metrics_named(spec):
        if metric not in REPORTED:
            raise InvalidJob(
                f"objectives and constraints: no trial reports {metric}; those that train report {', '.join(REPORTED)}"
            )
    for parameter in spec.space.parameters:
        for value in values(parameter):
            resolve(spec.trial, MODEL if spec.space.name is not None else None, {parameter.name: value})


def _told(parameters: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value!r}" for name, value in parameters.items())
