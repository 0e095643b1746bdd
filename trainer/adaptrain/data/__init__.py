"""Data sets: splits whose samples are addressed by number."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from adaptrain_api.components import DataSource
from torch.utils.data import TensorDataset, default_collate

from adaptrain.errors import InvalidJob
from adaptrain.load import call, find
from adaptrain.seeds import seed_sample


class _MapStyle(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class Split:
    """A map-style data set of (input, class) pairs."""

    def __init__(self, source: "_MapStyle | tuple[torch.Tensor, torch.Tensor]") -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source[0]) if isinstance(self._source, tuple) else len(self._source)

    def fetch(self, ids: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs [n, …] and classes int64 [n] of the samples with these ids int64 [n]; what they draw depends on the
        seed."""
        if isinstance(self._source, tuple):
            return self._source[0][ids], self._source[1][ids]
        x, y = default_collate([seeded(self._source, i, seed) for i in ids.tolist()])
        return x, y


def seeded(data: "_MapStyle", index: int, seed: int) -> Any:
    """A sample; what it draws from the process's own generators depends on the seed and its number alone."""
    if type(data) is not TensorDataset:
        seed_sample(seed, index)
    return data[index]


@dataclass(frozen=True)
class DataSet:
    """What a job trains on. ``shape`` is one input's, ``classes`` how many there are."""

    train: Split
    validation: Split
    test: Split | None
    shape: tuple[int, ...]
    classes: int


def load_data(source: DataSource) -> DataSet:
    """The data set that a manifest names.

    Raises:
        InvalidJob: it isn't there, doesn't take these arguments, or isn't a data set.
    """
    if source.name == "digits":
        from adaptrain.data.digits import digits

        return call("data", digits, source.args)
    made = call("data", find("data", source.name), source.args)
    if isinstance(made, DataSet):
        return made
    if not isinstance(made, Mapping) or not {"train", "validation"} <= set(made):
        raise InvalidJob(
            f"data.name: {source.name} must return a mapping with the data sets train, validation and, if there is one,"
            f" test; it returned {type(made).__name__}"
        )
    splits = {
        name: Split(cast(Any, made[name])) for name in ("train", "validation", "test") if made.get(name) is not None
    }
    x, _ = splits["train"].fetch(torch.tensor([0]))
    classes = made.get("classes") or 1 + max(
        int(splits[name].fetch(torch.arange(len(splits[name])))[1].max()) for name in splits
    )
    return DataSet(splits["train"], splits["validation"], splits.get("test"), tuple(x.shape[1:]), int(classes))
