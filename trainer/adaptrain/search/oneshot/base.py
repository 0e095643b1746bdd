"""What one-shot methods share: data in two halves, passes over them that can be continued later, and what is found."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from adaptrain.data.rng import derive, seed_torch
from adaptrain.search.algorithms.oneshot import CellSpace, Method
from adaptrain.search.oneshot.supernet import Supernet, supernet
from adaptrain.search.spaces.base import Architecture

Samples = tuple[torch.Tensor, torch.Tensor]
"""Inputs [n, …] and classes int64 [n]."""
UNIFORM = 0.5
"""Where the method draws the cells that train the shared weights, so many are drawn uniformly instead: else it settles
early, on what needs few steps to be of use, and then trains nothing else."""


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


class Stateful(Protocol):
    """A module, an optimizer, or a schedule."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any) -> Any: ...


class Run:
    """One search, pass after pass. What it finds depends on its arguments alone, whoever takes which of the passes.

    Args:
        samples: to train on, of which half compare architectures; where they are, the network is.
        classes: how many there are.

    Raises:
        ValueError: there are too few samples, or the space's network can't be built for them.
    """

    def __init__(self, space: CellSpace, samples: Samples, classes: int, seed: int, method: Method) -> None:
        self.space, self.method = space, method
        self.seed = seed
        self.passes = 0
        """That were taken."""
        with self._seeded("begin"):
            self.net: Supernet = supernet(space, tuple(samples[0].shape[1:]), classes).to(samples[0].device)
            self.train, self.compare = halves(samples)
            # SGD with momentum and a cosine schedule (Liu et al., 2019, appendix A.1.1).
            self.sgd = torch.optim.SGD(self.net.parameters(), method.rate, momentum=0.9, weight_decay=3e-4)
            self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.sgd, method.epochs, method.rate / 25)
            self.parts: dict[str, Stateful] = {"net": self.net, "sgd": self.sgd, "schedule": self._schedule}
            """What a pass changes."""
            self.begin()

    def begin(self) -> None:
        """Make what the method has beside the network, and add it to ``parts``."""

    def advance(self) -> dict[str, float]:
        """Take one pass. Returns figures of it, among them its mean ``loss``."""
        with self._seeded(self.passes):
            figures = self.one_pass()
        self._schedule.step()
        self.passes += 1
        return figures

    def one_pass(self) -> dict[str, float]:
        """The method itself."""
        raise NotImplementedError

    def found(self) -> Found:
        """What it has found so far."""
        with self._seeded("found"):
            return self.conclude()

    def conclude(self) -> Found:
        """Rank cells with the network as it is."""
        raise NotImplementedError

    def capture(self) -> dict[str, Any]:
        """All that ``restore`` needs, of numbers and tensors."""
        return {"passes": self.passes, **{name: part.state_dict() for name, part in self.parts.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        """Be where another one of the same arguments was."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self.passes = int(state["passes"])

    def step(self, batch: Samples, weights: torch.Tensor) -> float:
        """Train the shared weights by one step, with operations weighted so; its loss."""
        self.sgd.zero_grad()
        found = loss(self.net, batch, weights)
        found.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
        self.sgd.step()
        return float(found.detach())

    def train_drawn(self, draw: Callable[[], Architecture]) -> float:
        """Each step trains the shared weights of one architecture that is drawn. Returns the mean loss."""
        losses = [self.step(batch, self.net.weights(draw())) for batch in batches(self.train, self.method.batch_size)]
        return sum(losses) / len(losses)

    def explored(self, rng: np.random.Generator, draw: Callable[[], Architecture]) -> Architecture:
        """What the method draws, or a uniform one."""
        return self.space.random(rng) if rng.random() < UNIFORM else draw()

    def _seeded(self, purpose: int | str) -> AbstractContextManager[None]:
        return seeded(self.seed, self.method.name, purpose)


def search(run: Run) -> Found:
    """Take all passes that are left."""
    while run.passes < run.method.epochs:
        run.advance()
    return run.found()


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


def ranked(scores: Iterable[tuple[Architecture, float]]) -> Found:
    """What was found among architectures with their scores."""
    ranking = sorted(scores, key=lambda one: -one[1])
    return Found(ranking[0][0], ranking)
