"""Regularized evolution (Real et al., 2019, algorithm 1): the oldest dies, not the worst."""

from collections.abc import Sequence

import numpy as np

from adaptrain.search.algorithms.base import Algorithm, Proposal
from adaptrain.search.spaces.base import Architecture, Space


class RegularizedEvolution(Algorithm):
    """
    Args:
        population: architectures that live, the youngest.
        sample: of them, among whom the best becomes a parent.
        crossover: probability that a child has a second parent.
    """

    def __init__(self, space: Space, seed: int, population: int = 20, sample: int = 5, crossover: float = 0.0) -> None:
        super().__init__(space, seed)
        self.population, self.sample, self.crossover = population, sample, crossover

    def propose(self, rng: np.random.Generator, pending: Sequence[Architecture]) -> Proposal:
        if len(self.told) + len(pending) < self.population:
            return Proposal(self.unseen(rng))
        alive = [(value, at) for at, value in self.told[-self.population :] if np.isfinite(value)]
        if not alive:
            return Proposal(self.unseen(rng))
        parents = [self._parent(alive, rng)]
        child = parents[0]
        if rng.random() < self.crossover:
            parents.append(self._parent(alive, rng))
            child = self.space.crossover(parents[0], parents[1], rng)
        child = self.space.mutate(child, rng)
        return Proposal(child, {"parents": [list(parent) for parent in parents]})

    def _parent(self, alive: list[tuple[float, Architecture]], rng: np.random.Generator) -> Architecture:
        chosen = rng.choice(len(alive), size=min(self.sample, len(alive)), replace=False)
        best: Architecture = max(alive[int(i)] for i in chosen)[1]
        return best
