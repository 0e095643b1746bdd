"""Local search (White et al., 2020, "Local Search is State of the Art for NAS Benchmarks"): the best neighbour, again
and again; anew from a random architecture where no neighbour is better."""

from collections.abc import Sequence

import numpy as np

from adaptrain.search.algorithms.base import Algorithm, Proposal
from adaptrain.search.spaces.base import Architecture, Space


class LocalSearch(Algorithm):
    """Goes on from a neighbour as soon as it is better: "query until lower" in the paper's section 5."""

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__(space, seed)
        self._at: tuple[Architecture, float] | None = None

    def tell(self, architecture: Architecture, value: float) -> None:
        super().tell(architecture, value)
        if np.isfinite(value) and (self._at is None or value > self._at[1] or not self._left(self._at[0])):
            self._at = architecture, value

    def propose(self, rng: np.random.Generator, pending: Sequence[Architecture]) -> Proposal:
        if self._at is None or not (near := self._left(self._at[0])):
            return Proposal(self.unseen(rng))
        return Proposal(near[int(rng.integers(len(near)))], {"parents": [list(self._at[0])]})

    def _left(self, architecture: Architecture) -> list[Architecture]:
        return [one for one in self.space.neighbours(architecture) if self.space.key(one) not in self.seen]
