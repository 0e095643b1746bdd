"""Random search (Li and Talwalkar, 2019: a baseline that many methods don't beat)."""

from collections.abc import Sequence

import numpy as np

from adaptrain.search.algorithms.base import Algorithm, Proposal
from adaptrain.search.spaces.base import Architecture


class RandomSearch(Algorithm):
    def propose(self, rng: np.random.Generator, pending: Sequence[Architecture]) -> Proposal:
        return Proposal(self.unseen(rng))
