"""Data sets by name: ours, and what the image brings."""

import logging
import operator
from collections.abc import Mapping
from typing import Any, cast

import torch
from adaptrain_api.components import DataSource
from torch.utils.data import TensorDataset

from adaptrain.config.imports import call_with_args, import_callable
from adaptrain.data.dataset import DataSet, Split, seeded
from adaptrain.errors import InvalidJob

log = logging.getLogger(__name__)


def load_data(source: DataSource) -> DataSet:
    """The data set that a manifest names.

    Raises:
        InvalidJob: it isn't there, doesn't take these arguments, or isn't a data set.
    """
    if source.name == "digits":
        from adaptrain.data.digits import digits

        return call_with_args("data", digits, source.args)
    made = call_with_args("data", import_callable("data", source.name), source.args)
    if isinstance(made, DataSet):
        return made
    if not isinstance(made, Mapping) or not {"train", "validation"} <= set(made):
        raise InvalidJob(
            f"data.name: {source.name} must return a mapping with the data sets train, validation and, if there is one,"
            f" test; it returned {type(made).__name__}"
        )
    found = {name: made[name] for name in ("train", "validation", "test") if made.get(name) is not None}
    for name, split in found.items():
        _check_split(f"data.name: {source.name} returned {name},", split)
    splits = {name: Split(cast(Any, split)) for name, split in found.items()}
    where = f"data.name: {source.name} returned train,"
    try:
        x, _ = splits["train"].fetch(torch.tensor([0]))
        shape = tuple(x.shape[1:])
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidJob(f"{where} whose samples must be pairs of a tensor and its class: {error}") from error
    classes = made.get("classes")
    if classes is None:
        classes = 1 + max(
            _highest_class(f"data.name: {source.name} returned {n},", split) for n, split in found.items()
        )
    if type(classes) is not int or classes < 2:
        raise InvalidJob(f"data.name: {source.name} has classes {classes!r:.50}: it must be a whole number from 2 on")
    return DataSet(splits["train"], splits["validation"], splits.get("test"), shape, classes)


def _check_split(where: str, split: Any) -> None:
    """
    Raises:
        InvalidJob: it is no map-style data set, or has no samples.
    """
    pair = isinstance(split, tuple) and len(split) == 2
    if isinstance(split, tuple) and not (pair and all(isinstance(t, torch.Tensor) for t in split)):
        raise InvalidJob(f"{where} a tuple, which must be of two tensors: inputs and classes")
    if pair and len(split[0]) != len(split[1]):
        raise InvalidJob(f"{where} with {len(split[0])} inputs and {len(split[1])} classes: there must be as many")
    if not (hasattr(split, "__len__") and hasattr(split, "__getitem__")):
        raise InvalidJob(f"{where} a {type(split).__name__}, which is no map-style data set (__len__ and __getitem__)")
    if (len(split[0]) if pair else len(split)) == 0:
        remedy = "leave it out" if " test," in where else "give it samples"
        raise InvalidJob(f"{where} which is empty: {remedy}")


def _highest_class(where: str, split: Any) -> int:
    """The highest class of a split; its samples are read one by one where it doesn't tell its classes apart.

    Raises:
        InvalidJob: one has a class that is none.
    """
    if isinstance(split, tuple):
        known: Any = split[1]
    elif type(split) is TensorDataset:
        known = split.tensors[1]
    else:
        known = getattr(split, "targets", None)  # torchvision's name
    if known is None or len(known) != (len(split[0]) if isinstance(split, tuple) else len(split)):
        log.info("%s without classes: its samples are read to count them; return classes as well", where)
        known = (seeded(split, index, 0)[1] for index in range(len(split)))
    highest = -1
    for number, value in enumerate(known.tolist() if isinstance(known, torch.Tensor) else known):
        if (found := _class(value)) is None or found < 0:
            raise InvalidJob(
                f"{where} whose sample {number} has class {value!r:.50}: classes are whole numbers from 0 on"
            )
        highest = max(highest, found)
    return highest


def _class(value: Any) -> int | None:
    try:
        return operator.index(value)
    except (TypeError, ValueError):
        return None
