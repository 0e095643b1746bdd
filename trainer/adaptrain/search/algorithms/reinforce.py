"""A controller that learns by reinforcement which architectures are good.

It chooses one dimension after the other, each given all choices before it:

    p(c_d = i | c_1 … c_d-1) = softmax_i(b_di + sum_e<d A_di,ec_e)

which is a network of one layer in the place of the papers' recurrent one: a hundred trials don't fill more. The reward
is the value less a moving average (the baseline), in standard deviations.

- REINFORCE: Zoph and Le, 2017, section 3.2; baseline and entropy's bonus: ENAS (Pham et al., 2018, section 2.2).
- PPO: Zoph et al., 2018 (NASNet), section 4; its objective is that of Schulman et al., 2017, equation 7.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from adaptrain.search.algorithms.base import Algorithm, Proposal
from adaptrain.search.spaces.base import Architecture, Space

Floats = NDArray[np.float64]

BASELINE = 0.9
"""How much of the moving average stays from trial to trial."""
TRIES = 5
"""So often the policy is drawn from until the architecture is new."""
FAILED = -1.0
"""The reward of one that failed, in standard deviations."""
MOST = 3.0
"""Larger rewards count as this."""


class Policy:
    """The distribution over architectures."""

    def __init__(self, space: Space) -> None:
        self._ends: NDArray[np.int64] = np.cumsum(space.sizes)
        self._starts: NDArray[np.int64] = self._ends - np.array(space.sizes)
        self._block = np.repeat(np.arange(len(space.sizes)), space.sizes)
        self._before = self._block[:, None] > self._block[None, :]
        self.bias: Floats = np.zeros(self._ends[-1])
        self.weights: Floats = np.zeros((self._ends[-1], self._ends[-1]))

    def draw(self, rng: np.random.Generator) -> Architecture:
        logits, drawn = self.bias.copy(), []
        for start, end in zip(self._starts, self._ends, strict=True):
            chances = np.exp(logits[start:end] - logits[start:end].max()).cumsum()
            drawn.append(int(np.searchsorted(chances, rng.random() * chances[-1], side="right")))
            logits += self.weights[:, start + drawn[-1]]
        return tuple(drawn)

    def hot(self, architectures: Sequence[Architecture]) -> Floats:
        """One-hot codes: [n, sum of the dimensions' sizes]."""
        found = np.zeros((len(architectures), int(self._ends[-1])))
        found[np.arange(len(architectures))[:, None], np.array(architectures) + self._starts] = 1.0
        return found

    def log_chances(self, hot: Floats) -> Floats:
        """Of every choice in every dimension, given the ones before it: as large as ``hot``."""
        logits = self.bias + hot @ self.weights.T
        logits -= np.maximum.reduceat(logits, self._starts, axis=1)[:, self._block]
        found: Floats = logits - np.log(np.add.reduceat(np.exp(logits), self._starts, axis=1))[:, self._block]
        return found

    def climb(self, hot: Floats, log: Floats, rewards: Floats, rate: float, entropy: float) -> None:
        """A step along the gradient of the mean of reward x log p(architecture) + ``entropy`` x the entropy of each
        choice; ``log`` are its ``log_chances``."""
        chances = np.exp(log)
        own = np.add.reduceat(-chances * log, self._starts, axis=1)[:, self._block]
        slope = rewards[:, None] * (hot - chances) - entropy * chances * (log + own)
        self.bias += rate * slope.mean(0)
        self.weights += rate * self._before * (slope.T @ hot) / len(hot)


class Controller(Algorithm):
    """
    Args:
        rate: of learning.
        entropy: what the entropy is worth in the reward.
    """

    def __init__(self, space: Space, seed: int, rate: float, entropy: float) -> None:
        super().__init__(space, seed)
        self.rate, self.entropy = rate, entropy
        self.policy = Policy(space)
        self._mean: float | None = None
        self._square = 0.0

    def propose(self, rng: np.random.Generator, pending: Sequence[Architecture]) -> Proposal:
        for _ in range(TRIES):
            drawn = self.policy.draw(rng)
            if self.space.is_valid(drawn) and self.space.key(drawn) not in self.seen:
                return Proposal(drawn)
        return Proposal(self.fresh(drawn, rng))

    def tell(self, architecture: Architecture, value: float) -> None:
        super().tell(architecture, value)
        self.learn(architecture, self._reward(value))

    def learn(self, architecture: Architecture, reward: float) -> None:
        """Improve the policy."""
        raise NotImplementedError

    def _reward(self, value: float) -> float:
        if not np.isfinite(value):
            return FAILED
        if self._mean is None:
            self._mean = value
        ahead = value - self._mean
        self._mean += (1 - BASELINE) * ahead
        self._square = BASELINE * (self._square + (1 - BASELINE) * ahead**2)
        return float(np.clip(ahead / max(self._square**0.5, 1e-12), -MOST, MOST)) if ahead else 0.0


class Reinforce(Controller):
    """Learns from each trial once."""

    def __init__(self, space: Space, seed: int, rate: float = 0.3, entropy: float = 0.05) -> None:
        super().__init__(space, seed, rate, entropy)

    def learn(self, architecture: Architecture, reward: float) -> None:
        hot = self.policy.hot([architecture])
        self.policy.climb(hot, self.policy.log_chances(hot), np.array([reward]), self.rate, self.entropy)


class PPO(Controller):
    """Learns from a batch of trials again and again, as long as the policy stays near the one before.

    Args:
        batch: trials.
        epochs: how often each is learned from.
        clip: epsilon in the paper's equation 7.
    """

    def __init__(
        self,
        space: Space,
        seed: int,
        rate: float = 3.0,
        entropy: float = 0.02,
        batch: int = 10,
        epochs: int = 10,
        clip: float = 0.2,
    ) -> None:
        super().__init__(space, seed, rate, entropy)
        self.batch, self.epochs, self.clip = batch, epochs, clip
        self._waiting: list[tuple[Architecture, float]] = []

    def learn(self, architecture: Architecture, reward: float) -> None:
        self._waiting.append((architecture, reward))
        if len(self._waiting) < self.batch:
            return
        hot = self.policy.hot([one for one, _ in self._waiting])
        rewards = np.array([each for _, each in self._waiting])
        before = (self.policy.log_chances(hot) * hot).sum(1)
        for _ in range(self.epochs):
            log = self.policy.log_chances(hot)
            ratio = np.exp((log * hot).sum(1) - before)
            moving = np.where(rewards > 0, ratio < 1 + self.clip, ratio > 1 - self.clip)
            self.policy.climb(hot, log, moving * ratio * rewards, self.rate, self.entropy)
        self._waiting = []
