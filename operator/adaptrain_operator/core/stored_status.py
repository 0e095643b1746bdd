"""Statuses as they are stored: an operator of another release may have written them."""

from collections.abc import Mapping
from typing import Any, TypeVar

from adaptrain_api.base import Open
from adaptrain_api.training.status import TrainingJobStatus
from pydantic import ValidationError

M = TypeVar("M", bound=Open)


def read_status(raw: Mapping[str, Any]) -> TrainingJobStatus:
    return read_known(TrainingJobStatus, raw)


def read_known(model: type[M], raw: Mapping[str, Any]) -> M:
    """A status without those of its fields that can't be read: an operator of another release may have written them."""
    known = dict(raw)
    while True:
        try:
            return model.model_validate(known)
        except ValidationError as problem:
            wrong = {str(one["loc"][0]) for one in problem.errors() if one["loc"]} & known.keys()
            if not wrong:
                return model()
            for name in wrong:
                del known[name]
