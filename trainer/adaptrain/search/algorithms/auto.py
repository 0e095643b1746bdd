"""The default: expected improvement of a Gaussian process, near what was best.

Values are looked at through -log(best - y + c (best - median)), which spreads out the best ones: what matters is who
of them is better, not how bad the bad ones are.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptrain.search.algorithms.base import Algorithm, Proposal
from adaptrain.search.algorithms.candidates import PARENTS, candidates, climb, unlike
from adaptrain.search.algorithms.gaussian import GaussianProcess
from adaptrain.search.spaces.base import Architecture, Codes, Features, Space

Floats = NDArray[np.float64]

SOFT = 0.15
"""c above: without it the best one would be infinitely better than all."""
NOISY_SOFT = 1.0
"""c under noise, where the best ones differ by luck, which is not to be spread out."""
AGAIN = 0.2
"""Under noise, so often an architecture is looked at that was looked at before."""
UNUSUAL = PROMISING = 0.15
"""Under noise, so often a neighbour of the likely best is taken: whose choice was tried least, or which promises most.
A few unlucky looks convince the model that a choice is bad, and it would never learn better."""
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
    """

    def __init__(self, space: Space, seed: int, start: int = 10, noisy: bool = False) -> None:
        super().__init__(space, seed)
        self.start, self.noisy = start, noisy
        self._model = GaussianProcess(space, seed)
        self._next_fit = start

    def propose(self, rng: np.random.Generator, pending: Sequence[Architecture]) -> Proposal:
        known = self._learn()
        if known is None:
            return Proposal(self.unseen(rng))
        codes, values = known
        deviation = np.zeros(len(values))
        if self.noisy:
            values, deviation = self._model.predict(codes, self.space.features(codes))
        codes = codes[order := np.argsort(-values, kind="stable")]
        best = float(values[order[0]])
        if self.noisy:
            turn = rng.random()
            if turn < UNUSUAL + PROMISING and (near := self._near(codes, best, unusual=turn < UNUSUAL)):
                return near
            if UNUSUAL + PROMISING <= turn < UNUSUAL + PROMISING + AGAIN:
                hopeful: Architecture = tuple(codes[int(np.argmax((values + deviation)[order]))].tolist())
                return Proposal(hopeful, {"again": True, "mean": best})
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

    def pick(self) -> Architecture:
        """Which of those that were tried is thought to be the best."""
        known = self._learn() if self.noisy else None
        if known is None:
            return super().pick()
        codes = known[0]
        mean, _ = self._model.predict(codes, self.space.features(codes))
        best: Architecture = tuple(codes[int(np.argmax(mean))].tolist())
        return best

    def _learn(self) -> tuple[Codes, Floats] | None:
        """Architectures and their values as the model sees them, once it has learned from them.

        The model is fitted at certain lengths of the history, whenever it is asked: so it depends on nothing else.
        """
        good = [one for one in self.told if np.isfinite(one[1])]
        if len(good) < self.start:
            return None
        while self._next_fit <= len(good):
            self._model.fit(*self._data(good[: self._next_fit]), STEPS if self._next_fit > self.start else FIRST_STEPS)
            self._next_fit = max(self._next_fit + 1, math.ceil(self._next_fit * GROWTH))
        codes, features, values, looks = self._data(good)
        self._model.condition(codes, features, values, looks)
        return codes, values

    def _data(self, good: list[tuple[Architecture, float]]) -> tuple[Codes, Features, Floats, Floats]:
        """Architectures, features, means as the model sees them, looks: of the best and the newest, if many."""
        looks: dict[Architecture, list[float]] = {}
        for architecture, value in good:
            looks.setdefault(architecture, []).append(value)
        known = [(architecture, float(np.mean(each)), len(each)) for architecture, each in looks.items()]
        if len(known) > MOST:
            order = sorted(range(len(known)), key=lambda i: -known[i][1])
            kept = {*order[: MOST // 2], *range(len(known) - MOST // 2, len(known))}
            known = [known[i] for i in sorted(kept)]
        codes = np.array([architecture for architecture, _, _ in known])
        values = spread(np.array([mean for _, mean, _ in known]), NOISY_SOFT if self.noisy else SOFT)
        return codes, self.space.features(codes), values, np.array([float(count) for _, _, count in known])


def spread(values: Floats, soft: float = SOFT) -> Floats:
    """The values as the model sees them, standardized; ``soft`` is c above."""
    best = values.max()
    width = max(float(best - np.median(values)), 1e-12)
    seen = -np.log(best - values + soft * width)
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
