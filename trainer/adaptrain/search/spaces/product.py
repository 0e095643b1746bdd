"""Two spaces side by side, such as an architecture's and that of the optimizer's parameters."""

from collections.abc import Hashable
from typing import Any

import numpy as np

from adaptrain.search.spaces.base import Architecture, Codes, Diagram, Features, Space


class Product(Space):
    """An architecture of the one, then one of the other."""

    def __init__(self, one: Space, other: Space) -> None:
        super().__init__((*one.dimensions, *other.dimensions))
        self._one, self._other, self._cut = one, other, len(one.dimensions)

    def is_valid(self, architecture: Architecture) -> bool:
        return self._one.is_valid(architecture[: self._cut]) and self._other.is_valid(architecture[self._cut :])

    def key(self, architecture: Architecture) -> Hashable:
        return self._one.key(architecture[: self._cut]), self._other.key(architecture[self._cut :])

    def features(self, codes: Codes) -> Features:
        return np.hstack((self._one.features(codes[:, : self._cut]), self._other.features(codes[:, self._cut :])))

    @property
    def feature_groups(self) -> tuple[int, ...]:
        return self._one.feature_groups + self._other.feature_groups

    def random(self, rng: np.random.Generator) -> Architecture:
        return (*self._one.random(rng), *self._other.random(rng))

    def neighbours(self, architecture: Architecture) -> list[Architecture]:
        one, other = architecture[: self._cut], architecture[self._cut :]
        near = [(*another, *other) for another in self._one.neighbours(one)]
        return near + [(*one, *another) for another in self._other.neighbours(other)]

    def crossover(self, one: Architecture, other: Architecture, rng: np.random.Generator) -> Architecture:
        first = self._one.crossover(one[: self._cut], other[: self._cut], rng)
        return (*first, *self._other.crossover(one[self._cut :], other[self._cut :], rng))

    def diagrams(self, architecture: Architecture) -> list[Diagram]:
        return self._one.diagrams(architecture[: self._cut]) + self._other.diagrams(architecture[self._cut :])

    def choice(self, architecture: Architecture) -> dict[str, Any]:
        return self._one.choice(architecture[: self._cut]) | self._other.choice(architecture[self._cut :])
