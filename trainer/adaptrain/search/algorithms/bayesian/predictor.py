"""Search guided by an ensemble of graph neural networks that predict how good an architecture is.

The ensemble's spread is its uncertainty, and the candidate of the largest independent draw from it is taken (White et
al., 2021, BANANAS, section 4.2: independent Thompson sampling), among mutants of the best ones. The networks are
convolutions over the architecture's graph, along its edges and against them (Shi et al., 2020, BONAS, equation 4;
Wen et al., 2020, section 3.2). All members are computed at once.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaptrain.search.algorithms.base import Algorithm, Proposal
from adaptrain.search.algorithms.bayesian.candidates import unlike
from adaptrain.search.algorithms.bayesian.expected_improvement import spread
from adaptrain.search.spaces.base import Architecture, Space

Floats = NDArray[np.float64]

MEMBERS = 5
WIDTH = 32
LAYERS = 3
RATE = 0.005
"""Of Adam (Kingma and Ba, 2015)."""
DECAY = 1e-3
BATCH = 32
FIRST_STEPS, STEPS = 100, 10
GROWTH = 1.02
"""The history grows by so much from training to training."""
PARENTS = 10
MUTANTS, RANDOM = 100, 20


class Predictor(Algorithm):
    """
    Args:
        start: random architectures before the first training.
    """

    def __init__(self, space: Space, seed: int, start: int = 10) -> None:
        super().__init__(space, seed)
        self.start = start
        self._ensemble = Ensemble(space, seed)
        self._good: list[tuple[Architecture, float]] = []
        self._next_training = start

    def tell(self, architecture: Architecture, value: float) -> None:
        super().tell(architecture, value)
        if np.isfinite(value):
            self._ensemble.add(architecture)
            self._good.append((architecture, value))

    def propose(self, rng: np.random.Generator, pending: Sequence[Architecture]) -> Proposal:
        if len(self._good) < self.start:
            return Proposal(self.unseen(rng))
        self._learn()
        pool = self._candidates(rng)
        if not pool:
            return Proposal(self.unseen(rng))
        mean, deviation = self._ensemble.predict(pool)
        best = int(np.argmax(mean + deviation * rng.standard_normal(len(pool))))
        return Proposal(pool[best], {"mean": float(mean[best]), "deviation": float(deviation[best])})

    def _learn(self) -> None:
        """At certain lengths of the history, whenever it is asked: so the networks depend on nothing else."""
        while self._next_training <= len(self._good):
            values = np.array([value for _, value in self._good[: self._next_training]])
            self._ensemble.train(spread(values), FIRST_STEPS if self._next_training == self.start else STEPS)
            self._next_training = max(self._next_training + 1, math.ceil(self._next_training * GROWTH))

    def _candidates(self, rng: np.random.Generator) -> list[Architecture]:
        parents = sorted(self._good, key=lambda one: -one[1])[:PARENTS]
        found = [self.space.random(rng) for _ in range(RANDOM)]
        for _ in range(MUTANTS):
            mutant = self.space.mutate(parents[int(rng.integers(len(parents)))][0], rng)
            found.append(self.space.mutate(mutant, rng) if rng.random() < 0.5 else mutant)
        return unlike(self.space, found, self.seen)


class Ensemble:
    """Networks that see different batches of the same architectures."""

    def __init__(self, space: Space, seed: int) -> None:
        self._space = space
        self._generator = torch.Generator().manual_seed(seed)
        self._sizes = [space.graph_operations, *[WIDTH] * LAYERS]
        self._parameters: list[Tensor] = []
        for before, after in zip(self._sizes, self._sizes[1:], strict=False):
            # Of a node itself, of those that feed it, and of those that it feeds.
            self._parameters.append(self._drawn(3 * before, after))
            self._parameters.append(torch.zeros(MEMBERS, 1, after))
        self._parameters += [self._drawn(WIDTH, WIDTH), torch.zeros(MEMBERS, 1, WIDTH), self._drawn(WIDTH, 1)]
        for parameter in self._parameters:
            parameter.requires_grad_()
        self._adam = torch.optim.Adam(self._parameters, lr=RATE, weight_decay=DECAY)
        self._graphs: list[tuple[Tensor, Tensor]] = []

    def add(self, architecture: Architecture) -> None:
        """One more to learn from."""
        self._graphs.append(self._encoded(architecture))

    def train(self, targets: Floats, steps: int) -> None:
        """On the first ones that were added, and their targets."""
        wanted = torch.tensor(targets, dtype=torch.float32)
        for _ in range(steps):
            chosen = torch.randint(len(targets), (MEMBERS, BATCH), generator=self._generator)
            graphs = [self._graphs[i] for i in chosen.flatten().tolist()]
            edges = torch.stack([graph[0] for graph in graphs])
            nodes = torch.stack([graph[1] for graph in graphs])
            batches = edges.view(MEMBERS, BATCH, *edges.shape[1:]), nodes.view(MEMBERS, BATCH, *nodes.shape[1:])
            self._adam.zero_grad()
            loss = ((self._forward(*batches) - wanted[chosen]) ** 2).sum() / BATCH
            loss.backward()  # type: ignore[no-untyped-call]
            self._adam.step()

    def predict(self, architectures: Sequence[Architecture]) -> tuple[Floats, Floats]:
        """Mean and standard deviation."""
        graphs = [self._encoded(one) for one in architectures]
        edges = torch.stack([graph[0] for graph in graphs]).expand(MEMBERS, -1, -1, -1)
        nodes = torch.stack([graph[1] for graph in graphs]).expand(MEMBERS, -1, -1, -1)
        with torch.no_grad():
            said = self._forward(edges, nodes).double().numpy()
        return said.mean(0), said.std(0, ddof=1)

    def _forward(self, edges: Tensor, nodes: Tensor) -> Tensor:
        """[members, n, to, from], [members, n, nodes, operations] -> [members, n]."""
        members, count, size, _ = nodes.shape
        into = edges / edges.sum(-1, keepdim=True).clamp(min=1)
        out = edges.mT / edges.mT.sum(-1, keepdim=True).clamp(min=1)
        for layer in range(LAYERS):
            weight, bias = self._parameters[2 * layer : 2 * layer + 2]
            seen = torch.cat([nodes, into @ nodes, out @ nodes], -1).flatten(1, 2)
            nodes = torch.relu(torch.baddbmm(bias, seen, weight)).view(members, count, size, WIDTH)
        weight, bias, last = self._parameters[-3:]
        return (torch.relu(torch.baddbmm(bias, nodes.mean(2), weight)) @ last).squeeze(-1)

    def _encoded(self, architecture: Architecture) -> tuple[Tensor, Tensor]:
        adjacency, operations = self._space.graph(architecture)
        hot = np.eye(self._space.graph_operations, dtype=np.float32)[operations]
        return torch.from_numpy(adjacency.T.astype(np.float32)), torch.from_numpy(hot)

    def _drawn(self, before: int, after: int) -> Tensor:
        return torch.randn(MEMBERS, before, after, generator=self._generator) * math.sqrt(2.0 / before)
