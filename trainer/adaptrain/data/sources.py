"""Where a script's samples come from, and which of them a step takes.

Both kinds answer for a place in the data, not for "the next" samples: a step that is discarded is taken again.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, cast

import torch
from torch.utils.data import DataLoader, IterableDataset, Subset

from adaptrain.data.dataset import seeded
from adaptrain.data.rng import GlobalRandom, derive, seed_sample
from adaptrain.data.sampler import Sampler
from adaptrain.errors import InvalidJob


class Source(Protocol):
    length: int | None
    """Samples of a pass; None: known at its end."""

    def batch(self, epoch: int, cursor: int, size: int) -> torch.Tensor:
        """Ids of the global batch at a place: int64 [≤ size]."""

    def samples(self, ids: torch.Tensor) -> list[Any]:
        """The samples with these ids, which ``batch`` gave last."""

    def ended(self, epoch: int, cursor: int) -> bool:
        """Whether the pass is complete at a place."""


def source_of(data: Any, seed: int) -> Source:
    """A data set of either kind.

    Raises:
        InvalidJob: it is neither, or empty.
    """
    kind, size = type(data).__name__, getattr(data, "batch_size", None)
    if isinstance(data, DataLoader) or (hasattr(data, "dataset") and hasattr(data, "batch_sampler")):
        raise InvalidJob(
            f"data is a {kind}, which makes batches: give Elastic its data set (loader.dataset), batch_size={size} and,"
            " if it has one, its collate_fn as collate; elastic shuffles and splits"
        )
    if isinstance(data, Iterator):
        raise InvalidJob(
            f"data is a {kind}, which can be read only once: give a data set whose __iter__ begins anew, such as a"
            " torch.utils.data.IterableDataset"
        )
    if isinstance(data, str | bytes | dict | torch.Tensor):
        raise InvalidJob(
            f"data is a {kind}, and no data set: give one such as torch.utils.data.TensorDataset(inputs, classes)"
        )
    # torch's base class gives iterable data sets a __getitem__ that only raises.
    if not isinstance(data, IterableDataset) and hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        if len(data) == 0:
            raise InvalidJob("the data set is empty: there is nothing to train on")
        if isinstance(data, list | tuple):
            _refuse_batches(data)
        return MapSource(data, seed)
    if hasattr(data, "__iter__"):
        return StreamSource(data, seed)
    raise InvalidJob(
        f"a {type(data).__name__} is no data set: it needs __len__ and __getitem__ (map-style), or __iter__ (iterable)"
    )


def _refuse_batches(data: Any) -> None:
    """
    Raises:
        InvalidJob: the samples of a list are batches, all of one size, but perhaps the last.
    """
    sizes = []
    for sample in data[:3]:
        parts = list(sample.values()) if isinstance(sample, Mapping) else sample
        if not isinstance(parts, list | tuple) or len(parts) < 2:
            return
        if not all(isinstance(part, torch.Tensor) and part.ndim > 0 for part in parts):
            return
        lengths = {len(part) for part in parts}
        if len(lengths) > 1 or 0 in lengths:
            return
        sizes.append(lengths.pop())
    if len(sizes) > 1 and len(set(sizes[:-1])) == 1 and sizes[0] > 1:
        raise InvalidJob(
            f"data looks like a list of batches, of {sizes[0]} samples each: give the samples themselves, such as"
            " torch.utils.data.TensorDataset(inputs, classes), and batch_size; if each is one sample, give a data set"
            " that is no list"
        )


class MapSource:
    """A map-style data set in a seeded order, another one in each pass.

    What a sample draws from the process's own generators (its augmentation) depends on (seed, pass, sample). Of a data
    set that makes many samples at once it depends on the first of them.
    """

    def __init__(self, data: Any, seed: int) -> None:
        self.length: int | None = len(data)
        self._data = data
        self._seed = seed
        self._epoch = 0
        self._sampler = Sampler(len(data), seed)
        # As torch's own fetcher does.
        self._many = getattr(data, "__getitems__", None)
        if isinstance(data, Subset) and not hasattr(data.dataset, "__getitems__"):
            self._many = None

    def batch(self, epoch: int, cursor: int, size: int) -> torch.Tensor:
        self._epoch = epoch
        return self._sampler.batch(epoch, cursor, size)

    def samples(self, ids: torch.Tensor) -> list[Any]:
        seed = derive(self._seed, "sample", self._epoch)
        if self._many is not None:
            seed_sample(seed, int(ids[0]))
            return cast(list[Any], self._many(ids.tolist()))
        return [seeded(self._data, i, seed) for i in ids.tolist()]

    def ended(self, epoch: int, cursor: int) -> bool:
        return cursor >= self._sampler.size


class StreamSource:
    """An iterable data set, read in its own order; samples are numbered from each pass's beginning.

    A data set that shuffles with the process's own random numbers gives the same order to all workers: it sees them
    seeded for the pass.
    """

    def __init__(self, data: Any, seed: int) -> None:
        self.length: int | None = None
        self._data = data
        self._seed = seed
        self._random = GlobalRandom()
        self._epoch = -1
        self._stream: Iterator[Any] = iter(())
        self._first = 0
        """Number of the first sample in ``_held``."""
        self._held: list[Any] = []

    def batch(self, epoch: int, cursor: int, size: int) -> torch.Tensor:
        self._seek(epoch, cursor)
        if self._first < cursor:
            raise InvalidJob(
                f"the data set ended after {self._first} samples, and training had taken {cursor} of this pass already:"
                " give it the one that training began with, or start a new job"
            )
        self._read(cursor + size + 1)  # and whether the pass ends there: each reading swaps the generators
        return torch.arange(cursor, min(cursor + size, self._first + len(self._held)))

    def samples(self, ids: torch.Tensor) -> list[Any]:
        return [self._held[i - self._first] for i in ids.tolist()]

    def ended(self, epoch: int, cursor: int) -> bool:
        self._read(cursor + 1)
        return cursor >= self._first + len(self._held)

    def _seek(self, epoch: int, cursor: int) -> None:
        """Let the samples from ``cursor`` on be held or yet to come."""
        if epoch != self._epoch or cursor < self._first:
            if (turn := getattr(self._data, "set_epoch", None)) is not None:
                turn(epoch)
            self._random.seed(derive(self._seed, "order", epoch))
            with self._random:
                self._stream = iter(self._data)
            self._epoch, self._first, self._held = epoch, 0, []
        known = min(cursor - self._first, len(self._held))
        del self._held[:known]
        self._first += known
        with self._random:
            for _ in itertools.islice(self._stream, cursor - self._first):
                self._first += 1

    def _read(self, end: int) -> None:
        if (missing := end - self._first - len(self._held)) > 0:
            with self._random:
                self._held += itertools.islice(self._stream, missing)
