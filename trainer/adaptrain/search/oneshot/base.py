"""What one-shot methods share: data in two halves, steps of the shared weights, and what is found."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from adaptrain.search.oneshot.supernet import Supernet
from adaptrain.search.spaces.base import Architecture
from adaptrain.seeds import derive, seed_torch

Samples = tuple[torch.Tensor, torch.Tensor]
"""Inputs [n, …] and classes int64 [n]."""


@dataclass(frozen=True)
class Found:
    """The best architecture, and all that were looked at with their scores: the largest, the best one's, first."""

    architecture: Architecture
    ranking: list[tuple[Architecture, float]]


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """torch's global random state is ``parts``'s inside, and as before outside."""
    with torch.random.fork_rng(devices=[]):
        seed_torch(derive(*parts))
        yield


def halves(samples: Samples) -> tuple[Samples, Samples]:
    """One to train the weights, one to compare architectures (Liu et al., 2019, appendix A.1.1), alike in classes.

    Raises:
        ValueError: there are too few.
    """
    x, y = samples
    if len(x) < 4:
        raise ValueError(f"a one-shot search needs at least 4 training samples, not {len(x)}")
    order = torch.randperm(len(x))
    order = order[y[order].argsort(stable=True)]
    one, other = order[::2], order[1::2]
    return (x[one], y[one]), (x[other], y[other])


def batches(samples: Samples, size: int) -> Iterator[Samples]:
    """A pass in random order, in batches of at most ``size`` that differ by one sample: they are normalized over
    themselves, and a rest of a few samples would be noise."""
    x, y = samples
    for ids in torch.randperm(len(x)).tensor_split(math.ceil(len(x) / size)):
        yield x[ids], y[ids]


class Weights:
    """The supernet's weights: SGD with momentum and a cosine schedule (Liu et al., 2019, appendix A.1.1)."""

    def __init__(self, net: Supernet, epochs: int, rate: float) -> None:
        self.net = net
        self._sgd = torch.optim.SGD(net.parameters(), rate, momentum=0.9, weight_decay=3e-4)
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self._sgd, max(epochs, 1), rate / 25)

    @property
    def rate(self) -> float:
        return float(self._sgd.param_groups[0]["lr"])

    def step(self, batch: Samples, weights: torch.Tensor) -> None:
        self._sgd.zero_grad()
        loss(self.net, batch, weights).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
        self._sgd.step()

    def end_epoch(self) -> None:
        self._schedule.step()


def loss(net: Supernet, batch: Samples, weights: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy."""
    x, y = batch
    return F.cross_entropy(net(x, weights), y)


@torch.no_grad()
def merit(net: Supernet, batch: Samples, architecture: Architecture) -> float:
    """How good an architecture is with the shared weights: its accuracy, as in both papers. Its likelihood would favour
    cells that say nothing over ones that are too sure."""
    x, y = batch
    return float((net(x, net.weights(architecture)).argmax(1) == y).double().mean())


def train_drawn(
    net: Supernet, weights: Weights, train: Samples, batch_size: int, draw: Callable[[], Architecture]
) -> None:
    """A pass over the data: each step trains the shared weights of one architecture that is drawn."""
    for batch in batches(train, batch_size):
        weights.step(batch, net.weights(draw()))
    weights.end_epoch()


def ranked(scores: Iterable[tuple[Architecture, float]]) -> Found:
    """What was found among architectures with their scores."""
    ranking = sorted(scores, key=lambda one: -one[1])
    return Found(ranking[0][0], ranking)
