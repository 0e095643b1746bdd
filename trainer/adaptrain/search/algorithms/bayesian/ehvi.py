"""The default for several objectives: expected hypervolume improvement of Gaussian processes, one for each objective.

Objectives are looked at through the normal scores of their ranks, so that it doesn't matter on which scale each is
told. What a candidate would add to the dominated hypervolume is estimated by draws from the processes and by random
directions (Zhang and Golovin, 2020, "Random hypervolume scalarizations for provable multi-objective black box
optimization", lemma 5): along a direction l, a set Y reaches max over y of min over i of ((y_i - r_i) / l_i)^m, and the
mean over directions is proportional to the hypervolume over r.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from adaptrain.search.algorithms.base import Algorithm, Proposal
from adaptrain.search.algorithms.bayesian.candidates import PARENTS, candidates, climb
from adaptrain.search.algorithms.bayesian.expected_improvement import FIRST_STEPS, GROWTH, MOST, STEPS
from adaptrain.search.algorithms.bayesian.gaussian_process import GaussianProcess
from adaptrain.search.spaces.base import Architecture, Codes, Space

Floats = NDArray[np.float64]

DRAWS, DIRECTIONS = 32, 48
BELOW = 3.0
"""How far the hypervolume's corner lies below the worst of the front: the nearer, the less its ends count."""


class HypervolumeSearch:
    """A ``Searcher`` (see ``objectives``).

    Args:
        objectives: how many there are.
        start: random architectures before the first fit.
    """

    def __init__(self, space: Space, seed: int, objectives: int, start: int = 10) -> None:
        self.space = space
        self._history = Algorithm(space, seed)
        self._models = [GaussianProcess(space, seed) for _ in range(objectives)]
        self._start = self._next_fit = start
        self._good: list[tuple[Architecture, tuple[float, ...], float]] = []

    def tell(self, architecture: Architecture, values: tuple[float, ...], violation: float = 0.0) -> None:
        """How good one is: not numbers if it failed; ``violation`` is how far it is from meeting the constraints."""
        self._history.tell(architecture, values[0])
        if all(map(math.isfinite, values)):
            self._good.append((architecture, values, violation))

    def ask(self, number: int, pending: Sequence[Architecture] = ()) -> Proposal:
        """What to try next (see ``Algorithm.ask``)."""
        history = self._history
        history.seen |= {self.space.key(architecture) for architecture in pending}
        rng = np.random.default_rng([history.seed, number])
        if len(self._good) < self._start:
            return Proposal(history.unseen(rng))
        codes, worth = self._learn()
        front = np.flatnonzero(undominated(worth))
        chosen = rng.choice(front, size=min(PARENTS, len(front)), replace=False)
        pool = candidates(self.space, [tuple(code) for code in codes[chosen].tolist()], history.seen, rng)
        if not pool:
            return Proposal(history.unseen(rng))
        draws = rng.standard_normal((DRAWS, 1, len(self._models)))
        directions = np.abs(rng.standard_normal((DIRECTIONS, len(self._models))))

        def gain(some: list[Architecture]) -> Floats:
            mean, deviation = self._predict(some)
            return hypervolume_gain(mean + deviation * draws, worth[front], directions)

        best, gained = climb(self.space, pool, history.seen, gain)
        mean, deviation = (one[0].tolist() for one in self._predict([best]))
        return Proposal(best, {"gain": gained, "mean": mean, "deviation": deviation})

    def _predict(self, some: list[Architecture]) -> tuple[Floats, Floats]:
        """Means and standard deviations of what will be seen: [n, objectives]."""
        codes: Codes = np.array(some)
        features = self.space.features(codes)
        said = [model.predict(codes, features) for model in self._models]
        noise = np.array([model.noise for model in self._models])
        mean, deviation = np.stack([one for one, _ in said], axis=1), np.stack([one for _, one in said], axis=1)
        return mean, np.hypot(deviation, noise)

    def _learn(self) -> tuple[Codes, Floats]:
        """Architectures and their normal scores [n, objectives], which the models have learned from.

        They are fitted at certain lengths of the history, whenever it is asked: so they depend on nothing else.
        """
        while self._next_fit <= len(self._good):
            codes, worth = self._data(self._next_fit)
            steps = STEPS if self._next_fit > self._start else FIRST_STEPS
            features, looks = self.space.features(codes), np.ones(len(codes))
            for model, values in zip(self._models, worth.T, strict=True):
                model.fit(codes, features, values, looks, steps)
            self._next_fit = max(self._next_fit + 1, math.ceil(self._next_fit * GROWTH))
        codes, worth = self._data(len(self._good))
        features, looks = self.space.features(codes), np.ones(len(codes))
        for model, values in zip(self._models, worth.T, strict=True):
            model.condition(codes, features, values, looks)
        return codes, worth

    def _data(self, count: int) -> tuple[Codes, Floats]:
        """Of the first so many: if they are too many, those of the front and the newest."""
        good = self._good[:count]
        worth = normal_scores(np.array([values for _, values, _ in good]), [broken for _, _, broken in good])
        kept = np.arange(count)
        if count > MOST:
            front = np.flatnonzero(undominated(worth))[-MOST // 2 :]
            kept = np.unique(np.concatenate([front, kept[len(front) - MOST :]]))
        return np.array([good[i][0] for i in kept]), worth[kept]


def normal_scores(values: Floats, violations: Sequence[float]) -> Floats:
    """Quantiles of the normal distribution at the values' ranks: [n, objectives] for as many.

    What breaks a constraint ranks below all that meets it, the more so the further it is off (Deb, 2000, "An efficient
    constraint handling method for genetic algorithms", section 3).
    """
    off = np.maximum(np.array(violations), 0.0)
    place, found = NormalDist(), np.empty_like(values)
    for n, column in enumerate(values.T):
        worth = np.where(off > 0, column.min() - 1.0 - off, column)
        _, inverse, counts = np.unique(worth, return_inverse=True, return_counts=True)
        middle = np.cumsum(counts) - 0.5 * counts
        scores = np.array([place.inv_cdf(float(one)) for one in middle / len(worth)])
        found[:, n] = scores[inverse]
    return found


def undominated(values: Floats) -> NDArray[np.bool_]:
    """Which of [n, objectives] no other one surpasses."""
    no_worse = (values[:, None] >= values[None]).all(axis=2)
    better = (values[:, None] > values[None]).any(axis=2)
    found: NDArray[np.bool_] = np.logical_not((no_worse & better).any(axis=0))
    return found


def hypervolume_gain(drawn: Floats, front: Floats, directions: Floats) -> Floats:
    """What each candidate would add to what the front dominates, up to a factor: [n] for draws [draws, n, objectives].

    Args:
        front: [size, objectives].
        directions: positive, of any length: [any number, objectives].
    """
    corner = front.min(axis=0) - BELOW
    directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    power = front.shape[1]
    gain = np.zeros(drawn.shape[1])
    for direction in directions:
        reached = ((front - corner) / direction).min(axis=1).max() ** power
        reach = np.maximum(((drawn - corner) / direction).min(axis=2), 0.0) ** power
        gain += np.maximum(reach - reached, 0.0).mean(axis=0)
    return gain / len(directions)
