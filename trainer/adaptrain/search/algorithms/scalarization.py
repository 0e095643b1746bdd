"""Several objectives and constraints for algorithms that know one value.

Objectives become one by weights that are drawn anew for each trial (Knowles, 2006, "ParEGO", equation 2: the augmented
Tchebycheff function), so that all of the front is searched. What breaks a constraint is worse than all that meets it,
the more so the further it is off (Deb, 2000, "An efficient constraint handling method", section 3).
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from adaptrain.search.algorithms.base import Algorithm, Proposal
from adaptrain.search.spaces.base import Architecture, Space

AUGMENTED = 0.05


class Searcher(Protocol):
    """What a search asks and tells: an algorithm of any number of objectives, all maximized."""

    space: Space

    def ask(self, number: int, pending: Sequence[Architecture] = ()) -> Proposal: ...

    def tell(self, architecture: Architecture, values: tuple[float, ...], violation: float = 0.0) -> None:
        """How good one is: not numbers if it failed; ``violation`` is how far it is from meeting the constraints."""


class ScalarizedSearcher:
    """An algorithm of one objective as a ``Searcher``."""

    def __init__(self, algorithm: Algorithm, objectives: int) -> None:
        self.space = algorithm.space
        self._algorithm = algorithm
        self._objectives = objectives
        self._values: list[tuple[float, ...]] = []
        self._violations: list[float] = []

    def ask(self, number: int, pending: Sequence[Architecture] = ()) -> Proposal:
        if self._objectives > 1 or any(self._violations):
            rng = np.random.default_rng([self._algorithm.seed, number, self._objectives])
            self._make_one(rng.dirichlet(np.ones(self._objectives)))
        return self._algorithm.ask(number, pending)

    def tell(self, architecture: Architecture, values: tuple[float, ...], violation: float = 0.0) -> None:
        self._values.append(values)
        self._violations.append(violation)
        self._algorithm.tell(architecture, values[0] if violation == 0 else float("nan"))

    def ranked(self) -> list[Architecture]:
        """Those that were tried, the likely best first; none: the largest value is the best."""
        if self._objectives > 1:
            return []
        if any(self._violations):
            self._make_one(np.ones(1))
        return self._algorithm.ranked()

    def _make_one(self, weights: NDArray[np.float64]) -> None:
        """Of all that was told, the value that the algorithm knows."""
        worth = one_value(np.array(self._values).reshape(-1, self._objectives), weights, self._violations)
        architectures = [architecture for architecture, _ in self._algorithm.told]
        self._algorithm.told = list(zip(architectures, worth, strict=True))


def one_value(values: NDArray[np.float64], weights: NDArray[np.float64], violations: Sequence[float]) -> list[float]:
    """Trials' worth [n] by their objectives [n, objectives]; not a number for those that failed."""
    off = np.array(violations)
    good = np.isfinite(values.sum(axis=1))
    if not good.any():
        return [float("nan")] * len(values)
    best, worst = values[good].max(axis=0), values[good].min(axis=0)
    regret = (best - values) / np.maximum(best - worst, 1e-12)
    if values.shape[1] > 1:
        worth = -((weights * regret).max(axis=1) + AUGMENTED * (weights * regret).sum(axis=1))
    else:
        worth = values[:, 0].copy()
    broken = good & (off > 0)
    if broken.any():
        met = worth[good & ~broken]
        floor = met.min() if len(met) else 0.0
        spread = max(float(worth[good].max() - worth[good].min()), 1e-12)
        worth[broken] = floor - spread * (0.1 + off[broken] / max(float(off[broken].max()), 1e-12))
    found: list[float] = np.where(good, worth, np.nan).tolist()
    return found
