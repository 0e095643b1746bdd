"""Data sets: splits whose samples are addressed by number."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils.data import TensorDataset, default_collate

from adaptrain.data.rng import seed_sample


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
