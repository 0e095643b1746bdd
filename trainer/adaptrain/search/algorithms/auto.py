"""The default: expected improvement of a Gaussian process, near what was best.

Values are looked at through -log(best - y + c (best - median)), which spreads out the best ones: what matters is who
of them is better, not how bad the bad ones are. Under noise, what to try is said by 1 / (best - y + c (best - median)),
for which all bad ones are alike; which of those that were tried is the best, by the logarithm.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adaptrain.search.algorithms.base import Algorithm, Proposal
from adaptrain.search.algorithms.candidates import PARENTS, candidates, climb, unlike
from adaptrain.search.algorithms.gaussian import GaussianProcess
from adaptrain.search.spaces.base import Architecture, Codes, Space

Floats = NDArray[np.float64]

SOFT = 0.15
"""c above: without it the best one would be infinitely better than all."""
NOISY_SOFT = 0.5
"""c of the reciprocal."""
MILD_SOFT = 1.0
"""c of the logarithm under noise, where the best ones differ by luck, which is not to be spread out."""


class Turns(NamedTuple):
    """Under noise, how often what is tried is not what promises most."""

    near: float
    """A neighbour of the likely best: whose choice was tried least, and as often one which promises most. A few unlucky
    looks convince the model that a choice is bad, and it would never learn better."""
    again: float
    """What was tried before: the one with the largest mean and ``bound`` deviations."""
    bound: float


SEARCHING = Turns(near=0.15, again=0.12, bound=1.0)
"""A second look at what seems to be the best keeps the search from going astray."""
ENDING = Turns(near=0.1, again=0.6, bound=3.0)
"""In the end its rivals have theirs, so that the right one is picked."""
END = 0.2
"""So much of the budget's trials are the end."""
HOPELESS = -13.0
"""Without noise, a neighbour of the best is taken whose choice was tried least where the logarithm of what the model
expects, in standard deviations of what it sees, is below this. If the model is right, nothing is lost."""
DOUBT = 0.5
"""So often."""
STEPS = 5
FIRST_STEPS = 30
GROWTH = 1.01
"""The history grows by so much from fit to fit."""
MOST = 200
"""The model learns from so many."""


class Auto(Algorithm):
    """
    Args:
        start: random architectures before the first fit.
        noisy: whether an architecture's value differs from look to look, so that a second one may be worth it.
        trials: the budget's; None: who knows.
    """

    def __init__(
        self, space: Space, seed: int, start: int = 10, noisy: bool = False, trials: int | None = None
    ) -> None:
        super().__init__(space, seed)
        self.start, self.noisy = start, noisy
        self._end = math.inf if trials is None else (1.0 - END) * trials
        self._turns = SEARCHING
        self._model = GaussianProcess(space, seed)
        self._next_fit = start

    def ask(self, number: int, pending: Sequence[Architecture] = ()) -> Proposal:
        self._turns = SEARCHING if number < self._end else ENDING
        return super().ask(number, pending)

    def propose(self, rng: np.random.Generator, pending: Sequence[Architecture]) -> Proposal:
        known = self._learn()
        if known is None:
            return Proposal(self.unseen(rng))
        codes, means, values = known
        deviation = np.zeros(len(means))
        if self.noisy:
            values, deviation = self._model.predict(codes, self.space.features(codes))
        order = np.argsort(-values, kind="stable")
        best = float(values[order[0]])
        if self.noisy:
            turns, turn = self._turns, rng.random()
            beside = 2 * turns.near
            if turn < beside and (near := self._near(codes[order], best, unusual=turn < turns.near)):
                return near
            if beside <= turn < beside + turns.again:
                hoped = int(np.argmax(self._worth(means) + turns.bound * deviation))
                return Proposal(tuple(codes[hoped].tolist()), {"again": True, "mean": float(values[hoped])})
        codes = codes[order]
        parents = [tuple(code) for code in codes[:PARENTS].tolist()]
        pool = candidates(self.space, parents, self.seen, rng)
        if not pool:
            return Proposal(self.unseen(rng))
        chosen, gain = climb(self.space, pool, self.seen, lambda some: self._gain(some, best))
        doubts = not self.noisy and gain < HOPELESS and rng.random() < DOUBT
        if doubts and (near := self._near(codes, best, unusual=True)):
            return near
        return self._proposal(chosen, gain, {})

    def _near(self, codes: Codes, best: float, unusual: bool) -> Proposal | None:
        """A neighbour of the first of ``codes``, or of the second if all of the first's were tried; None: of both.

        Args:
            unusual: of those whose new choice is the rarest among ``codes``; else of all.
        """
        for parent in codes[:2]:
            pool = unlike(self.space, self.space.neighbours(tuple(parent.tolist())), self.seen)
            if not pool:
                continue
            if unusual:
                tried = [
                    min(int((codes[:, d] == one[d]).sum()) for d in np.flatnonzero(np.array(one) != parent))
                    for one in pool
                ]
                pool = [one for one, count in zip(pool, tried, strict=True) if count == min(tried)]
            gains = self._gain(pool, best)
            chosen = int(np.argmax(gains))
            return self._proposal(pool[chosen], float(gains[chosen]), {"unusual": unusual})
        return None

    def _proposal(self, chosen: Architecture, gain: float, why: dict[str, Any]) -> Proposal:
        codes: Codes = np.array([chosen])
        mean, _ = self._model.predict(codes, self.space.features(codes))
        return Proposal(chosen, {**why, "log_ei": gain, "mean": float(mean[0])})

    def _gain(self, pool: list[Architecture], best: float) -> Floats:
        """Logarithms of the expected improvements."""
        codes: Codes = np.array(pool)
        mean, deviation = self._model.predict(codes, self.space.features(codes))
        if not self.noisy:
            # What the model takes for noise is then part of what will be seen.
            deviation = np.hypot(deviation, self._model.noise)
        return log_expected_improvement(mean, deviation, best)

    def ranked(self) -> list[Architecture]:
        known = self._learn() if self.noisy else None
        if known is None:
            return []
        codes, means, _ = known
        return [tuple(code) for code in codes[np.argsort(-self._worth(means), kind="stable")].tolist()]

    def _worth(self, means: Floats) -> Floats:
        """Of those that were tried, what the model thinks of the logarithm under noise."""
        return self._model.smoothed(spread(means, MILD_SOFT))

    def _learn(self) -> tuple[Codes, Floats, Floats] | None:
        """Architectures, the means of their looks, and these as the model sees them, once it has learned from them.

        The model is fitted at certain lengths of the history, whenever it is asked: so it depends on nothing else.
        """
        good = [one for one in self.told if np.isfinite(one[1])]
        if len(good) < self.start:
            return None
        while self._next_fit <= len(good):
            codes, means, looks = self._data(good[: self._next_fit])
            steps = STEPS if self._next_fit > self.start else FIRST_STEPS
            self._model.fit(codes, self.space.features(codes), self._targets(means), looks, steps)
            self._next_fit = max(self._next_fit + 1, math.ceil(self._next_fit * GROWTH))
        codes, means, looks = self._data(good)
        targets = self._targets(means)
        self._model.condition(codes, self.space.features(codes), targets, looks)
        return codes, means, targets

    def _targets(self, means: Floats) -> Floats:
        """As the model sees them."""
        return spread(means, NOISY_SOFT, reciprocal=True) if self.noisy else spread(means)

    def _data(self, good: list[tuple[Architecture, float]]) -> tuple[Codes, Floats, Floats]:
        """Architectures, means, looks: of the best and the newest, if many."""
        looks: dict[Architecture, list[float]] = {}
        for architecture, value in good:
            looks.setdefault(architecture, []).append(value)
        known = [(architecture, float(np.mean(each)), len(each)) for architecture, each in looks.items()]
        if len(known) > MOST:
            order = sorted(range(len(known)), key=lambda i: -known[i][1])
            kept = {*order[: MOST // 2], *range(len(known) - MOST // 2, len(known))}
            known = [known[i] for i in sorted(kept)]
        codes = np.array([architecture for architecture, _, _ in known])
        means = np.array([mean for _, mean, _ in known])
        return codes, means, np.array([float(count) for _, _, count in known])


def spread(values: Floats, soft: float = SOFT, reciprocal: bool = False) -> Floats:
    """The values as the model sees them, standardized; ``soft`` is c above, whose logarithm or reciprocal is taken."""
    best = values.max()
    width = max(float(best - np.median(values)), 1e-12)
    short = best - values + soft * width
    seen = width / short if reciprocal else -np.log(short)
    found: Floats = (seen - seen.mean()) / max(float(seen.std()), 1e-12)
    return found


def log_expected_improvement(mean: Floats, deviation: Floats, best: float) -> Floats:
    """Of candidates over the best (Ament et al., 2023, equation 9: its logarithm, which doesn't vanish)."""
    z = (mean - best) / deviation
    density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    plain = density + z * _cdf(z)
    far = -0.5 * z * z - 0.5 * math.log(2 * math.pi) - 2.0 * np.log(np.maximum(-z, 1.0))
    with np.errstate(divide="ignore"):
        found: Floats = np.where(z > -5, np.log(np.maximum(plain, 1e-300)), far) + np.log(deviation)
    return found


def _cdf(z: Floats) -> Floats:
    found: Floats = 0.5 * (1.0 + np.vectorize(math.erf)(z / math.sqrt(2.0)))
    return found
