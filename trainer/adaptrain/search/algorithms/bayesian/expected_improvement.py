"""The default: expected improvement of a Gaussian process, near what was best; under noise, what it can hope for.

Values are looked at through -log(best - y + c (best - median)), which spreads out the best ones: what matters is who
of them is better, not how bad the bad ones are. Under noise, what to try is said by 1 / (best - y + c (best - median)),
for which all bad ones are alike; which of those that were tried is the best, by the logarithm. What to try is then the
candidate of the largest upper confidence bound (Srinivas et al., 2010, equation 2): improvement on a best that is
partly luck is expected too seldom of what is hardly known.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adaptrain.search.algorithms.base import Algorithm, Proposal
from adaptrain.search.algorithms.bayesian.candidates import PARENTS, candidates, climb, unlike
from adaptrain.search.algorithms.bayesian.gaussian_process import GaussianProcess
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
    mild: float
    """What is expected to improve most by the logarithm, which doesn't let one lucky look outshine the rest."""
    again: float
    """What was tried before: the one with the largest mean and ``bound`` deviations."""
    bound: float


SEARCHING = Turns(near=0.03, mild=0.12, again=0.12, bound=1.0)
"""A second look at what seems to be the best keeps the search from going astray."""
ENDING = Turns(near=0.1, mild=0.0, again=0.6, bound=3.0)
"""In the end its rivals have theirs, so that the right one is picked."""
END = 0.3
"""So much of the budget's trials are the end."""
HOPE = 3.0
"""Under noise, so many deviations above its mean is what a candidate may be worth."""
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


class Gain(NamedTuple):
    """What is tried is the candidate that has most of it."""

    name: str
    """As the trial tells it."""
    of: Callable[[list[Architecture]], Floats]


class GaussianProcessSearch(Algorithm):
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
        return self._under_noise(codes, means, rng) if self.noisy else self._exact(codes, values, rng)

    def _exact(self, codes: Codes, values: Floats, rng: np.random.Generator) -> Proposal:
        order = np.argsort(-values, kind="stable")
        gain = Gain("log_ei", functools.partial(self._improvement, float(values[order[0]])))
        found = self._promising(codes[order], gain, rng)
        doubts = found.why.get(gain.name, 0.0) < HOPELESS and rng.random() < DOUBT
        return (self._near(codes[order], gain, unusual=True) if doubts else None) or found

    def _under_noise(self, codes: Codes, means: Floats, rng: np.random.Generator) -> Proposal:
        turns, turn = self._turns, rng.random()
        near, again = 2 * turns.near, 2 * turns.near + turns.again
        mild = again <= turn < again + turns.mild
        if mild:
            self._model.instead(spread(means, MILD_SOFT))
        values, deviations = self._model.predict(codes, self.space.features(codes))
        if near <= turn < again:
            hoped = int(np.argmax(self._worth(means) + turns.bound * deviations))
            return Proposal(tuple(codes[hoped].tolist()), {"again": True, "mean": float(values[hoped])})
        order = np.argsort(-values, kind="stable")
        hope = Gain("bound", self._bound)
        if turn < near and (found := self._near(codes[order], hope, unusual=turn < turns.near)):
            return found
        improvement = Gain("log_ei", functools.partial(self._improvement, float(values[order[0]])))
        return self._promising(codes[order], improvement if mild else hope, rng)

    def _promising(self, codes: Codes, gain: Gain, rng: np.random.Generator) -> Proposal:
        """The candidate of the largest gain.

        Args:
            codes: of what was tried, the best first.
        """
        parents = [tuple(code) for code in codes[:PARENTS].tolist()]
        pool = candidates(self.space, parents, self.seen, rng)
        if not pool:
            return Proposal(self.unseen(rng))
        chosen, most = climb(self.space, pool, self.seen, gain.of)
        return self._proposal(chosen, {gain.name: most})

    def _near(self, codes: Codes, gain: Gain, unusual: bool) -> Proposal | None:
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
            gains = gain.of(pool)
            chosen = int(np.argmax(gains))
            return self._proposal(pool[chosen], {"unusual": unusual, gain.name: float(gains[chosen])})
        return None

    def _proposal(self, chosen: Architecture, why: dict[str, Any]) -> Proposal:
        mean, _ = self._predicted([chosen])
        return Proposal(chosen, {**why, "mean": float(mean[0])})

    def _improvement(self, best: float, pool: list[Architecture]) -> Floats:
        """Logarithms of what is expected."""
        mean, deviation = self._predicted(pool)
        if not self.noisy:
            # What the model takes for noise is then part of what will be seen.
            deviation = np.hypot(deviation, self._model.noise)
        return log_expected_improvement(mean, deviation, best)

    def _bound(self, pool: list[Architecture]) -> Floats:
        mean, deviation = self._predicted(pool)
        return mean + HOPE * deviation

    def _predicted(self, pool: list[Architecture]) -> tuple[Floats, Floats]:
        codes: Codes = np.array(pool)
        return self._model.predict(codes, self.space.features(codes))

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
