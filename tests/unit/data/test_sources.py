"""Where a script's samples come from: any place of the data can be asked for again."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from adaptrain.data.sources import MapSource, StreamSource, source_of
from adaptrain.errors import InvalidJob
from torch.utils.data import IterableDataset, TensorDataset


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __init__(self, size: int) -> None:
        self.size, self.began, self.epoch = size, 0, -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        self.began += 1
        return iter([(self.epoch, n) for n in range(self.size)])


def taken(source: Any, epoch: int, cursor: int, size: int) -> list[Any]:
    found: list[Any] = source.samples(source.batch(epoch, cursor, size))
    return found


def test_a_stream_goes_on_and_is_read_once() -> None:
    data = Stream(10)
    source = StreamSource(data, seed=0)
    assert [taken(source, 0, at, 4) for at in (0, 4, 8)] == [
        [(0, n) for n in part] for part in (range(4), range(4, 8), range(8, 10))
    ]
    assert data.began == 1


def test_a_step_that_is_taken_again_reads_the_same_samples() -> None:
    data = Stream(10)
    source = StreamSource(data, seed=0)
    assert taken(source, 0, 4, 4) == taken(source, 0, 4, 4) == [(0, n) for n in range(4, 8)]
    assert taken(source, 0, 0, 2) == [(0, 0), (0, 1)], "back to an older state"
    assert taken(source, 1, 8, 4) == [(1, 8), (1, 9)], "on to a newer one"


@pytest.mark.parametrize("size", [8, 10])
def test_a_streams_end_is_seen_before_the_next_batch(size: int) -> None:
    source = StreamSource(Stream(size), seed=0)
    ends = []
    for at in range(0, size, 4):
        ids = source.batch(0, at, 4)
        ends.append(source.ended(0, at + len(ids)))
    assert ends == [False] * (len(ends) - 1) + [True]


def test_a_part_of_a_batch() -> None:
    source = StreamSource(Stream(10), seed=0)
    assert source.samples(source.batch(0, 4, 4)[1:3]) == [(0, 5), (0, 6)]


def test_a_map_style_data_set_is_shuffled_anew_in_each_pass() -> None:
    source = MapSource(TensorDataset(torch.arange(20)), seed=1)
    passes = [[int(x) for (x,) in taken(source, epoch, 0, 20)] for epoch in (0, 1, 0)]
    assert passes[0] == passes[2] != passes[1]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(20))
    assert [source.ended(0, at) for at in (19, 20)] == [False, True]


def test_samples_that_come_together() -> None:
    class Columns:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> int:
            raise AssertionError("one at a time is slow")

        def __getitems__(self, ids: list[int]) -> list[int]:
            return [10 * i for i in ids]

    assert sorted(taken(source_of(Columns(), 0), 0, 0, 4)) == [0, 10, 20, 30]


@pytest.mark.parametrize(
    ("data", "words"),
    [([], "the data set is empty"), (7, "a int is no data set"), (object(), "a object is no data set")],
)
def test_what_is_no_data_set(data: Any, words: str) -> None:
    with pytest.raises(InvalidJob, match=words):
        source_of(data, 0)


class Shuffled(IterableDataset):  # type: ignore[type-arg]
    """Shuffles as data sets do: with whatever the process's generators say at the moment."""

    def __iter__(self) -> Iterator[tuple[int, float, float]]:
        for n in torch.randperm(10).tolist():
            yield n, random.random(), float(np.random.rand())


def test_a_shuffled_stream_has_the_same_order_on_all_workers_and_in_each_pass_another() -> None:
    seen = []
    for worker in range(2):
        torch.manual_seed(worker)
        source = StreamSource(Shuffled(), seed=3)
        own = torch.get_rng_state()
        seen.append([[s for at in range(0, 10, 4) for s in taken(source, epoch, at, 4)] for epoch in range(2)])
        assert torch.equal(torch.get_rng_state(), own), "reading disturbs the training's random numbers"
    assert seen[0] == seen[1]
    assert seen[0][0] != seen[0][1]
    assert taken(StreamSource(Shuffled(), seed=3), 1, 4, 4) == seen[0][1][4:8], "who joins reads up to its place"


def test_a_stream_that_shrank_is_told_from_one_that_ends() -> None:
    source = source_of(Stream(30), 0)
    assert len(source.batch(0, 30, 8)) == 0
    with pytest.raises(InvalidJob, match="ended after 30 samples, and training had taken 32"):
        source.batch(1, 32, 8)
