"""A Gaussian process over categorical choices (Rasmussen and Williams, 2006, chapters 2 and 5).

The covariance of two architectures falls with the squared distance of their choices' embeddings, weighted for each
dimension, and of their features, weighted for each group; beside it, values are linear in the features:

    k(x, y) = s exp(-sum_d w_d |E_d(x_d) - E_d(y_d)|^2 - sum_g v_g |phi_g(x) - phi_g(y)|^2)
              + sum_g u_g phi_g(x) . phi_g(y)

So what a feature is worth on average is known from all that have it, however unlike they are otherwise; features are
counted from their mean.

What was looked at n times is known by its mean, whose noise is an n-th of one look's.

Weights, embeddings (shared by dimensions of the same kind), scale and noise are those of the largest marginal
likelihood with a weak prior, found by gradient ascent that goes on from where the last fit ended.
"""

import numpy as np
from numpy.typing import NDArray

from adaptrain.search.spaces.base import Codes, Features, Space

Floats = NDArray[np.float64]

RANK = 3
"""Numbers in an embedding."""
RATE = 0.1
"""Of Adam (Kingma and Ba, 2015), on logarithms."""
BY_FEATURES = 0.8
"""Of the squared distance of two architectures, about 1 before anything is learned, if there are features."""
LINEAR = float(np.exp(-1.0))
"""Variance by each group of features, before anything is learned."""
FIRST_NOISE = 0.1
"""Variance, before anything is learned."""
SAMPLE = 200
"""Architectures by which the features' weights are set, and their mean."""
JITTER = 1e-6
WIDTH = {"weights": 1.0, "features": 1.5, "linear": 1.5, "scale": 1.0, "noise": 2.0}
EMBEDDING_WIDTH = 0.3
NOISE = (np.log(1e-5), np.log(2.0))
"""The variance's bounds, as logarithms."""


class GaussianProcess:
    """Fitted to standardized values."""

    def __init__(self, space: Space, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._sizes = space.sizes
        self._offsets = np.concatenate([[0], np.cumsum(space.sizes)])
        kinds: dict[str, int] = {}
        self._kind = [kinds.setdefault(dimension.kind, len(kinds)) for dimension in space.dimensions]
        size_of = {kind: len(d.choices) for kind, d in zip(self._kind, space.dimensions, strict=True)}
        groups = space.feature_groups
        self._group_sizes = np.array(groups, dtype=np.int64)
        self._groups = [slice(end - size, end) for size, end in zip(groups, np.cumsum(groups), strict=True)]
        drawn = space.features(np.array([space.random(rng) for _ in range(SAMPLE)]))
        self._middle = drawn.mean(axis=0)
        variances = np.maximum([float(drawn[:, group].var(axis=0).sum()) for group in self._groups], 1e-6)
        self.parameters: dict[str, Floats] = {
            "weights": np.full(len(space.sizes), np.log((1.0 - BY_FEATURES if groups else 1.0) / len(space.sizes))),
            # Random architectures are equally far from each other by each group.
            "features": np.log(BY_FEATURES / max(len(groups), 1) / (2.0 * variances)),
            "linear": np.log(LINEAR / variances),
            "scale": np.array([0.0]),
            "noise": np.array([np.log(FIRST_NOISE)]),
        }
        for kind, size in size_of.items():
            # Choices begin about equally far from each other.
            apart = _simplex(size)
            self.parameters[f"embedding{kind}"] = apart + 0.05 * rng.standard_normal(apart.shape)
        self._prior = {name: value.copy() for name, value in self.parameters.items()}
        self._adam = {name: (np.zeros_like(v), np.zeros_like(v)) for name, v in self.parameters.items()}
        self._steps = 0

    def fit(self, codes: Codes, features: Features, values: Floats, looks: Floats, steps: int) -> None:
        """Take so many steps towards the likeliest parameters."""
        hot, apart, along = self._one_hot(codes), self._apart(features), self._along(features)
        for _ in range(steps):
            self._climb(self._gradient(hot, apart, along, codes, values, looks))

    def condition(self, codes: Codes, features: Features, values: Floats, looks: Floats) -> None:
        """Predict from these data: ``values`` are means of so many ``looks``."""
        self._codes, self._features = codes, features
        covariance = self._covariance(codes, features, codes, features)
        self._alpha, self._inverse = self._solve(covariance, values, looks)
        self._noise = self._variance(looks)

    def log_likelihood(self, codes: Codes, features: Features, values: Floats, looks: Floats) -> float:
        """Of the values, without its constant (Rasmussen and Williams, equation 5.8)."""
        covariance = self._covariance(codes, features, codes, features)
        alpha, inverse = self._solve(covariance, values, looks)
        return float(-0.5 * values @ alpha + np.log(np.diag(inverse)).sum())

    def gradient(self, codes: Codes, features: Features, values: Floats, looks: Floats) -> dict[str, Floats]:
        """Of the likelihood, by the parameters."""
        along = self._along(features)
        return self._gradient(self._one_hot(codes), self._apart(features), along, codes, values, looks)

    def predict(self, codes: Codes, features: Features) -> tuple[Floats, Floats]:
        """Mean and standard deviation, without noise."""
        between = self._covariance(codes, features, self._codes, self._features)
        solved = self._inverse @ between.T
        before = np.exp(self.parameters["scale"][0]) + (self._linear(features) ** 2).sum(axis=1)
        variance = before - np.einsum("ij,ij->j", solved, solved)
        return between @ self._alpha, np.sqrt(np.maximum(variance, 1e-12))

    def instead(self, values: Floats) -> None:
        """Predict as if it had been told these values where it was conditioned."""
        self._alpha = self._solved(values)

    def smoothed(self, values: Floats) -> Floats:
        """Means where it was conditioned, had it been told these values there."""
        found: Floats = values - self._noise * self._solved(values)
        return found

    def _solved(self, values: Floats) -> Floats:
        """K^-1 values, where it was conditioned."""
        found: Floats = self._inverse.T @ (self._inverse @ values)
        return found

    @property
    def noise(self) -> float:
        """Standard deviation of one look."""
        return float(np.exp(0.5 * self.parameters["noise"][0]))

    def _apart(self, features: Features) -> Floats:
        """Squared distances by each group: [groups, n, n]."""
        each = [_squared_distances(features[:, group], features[:, group]) for group in self._groups]
        return np.array(each).reshape(len(each), len(features), len(features))

    def _along(self, features: Features) -> Floats:
        """Products by each group: [groups, n, n]."""
        centred = features - self._middle
        each = [centred[:, group] @ centred[:, group].T for group in self._groups]
        return np.array(each).reshape(len(each), len(features), len(features))

    def _one_hot(self, codes: Codes) -> Floats:
        hot = np.zeros((len(codes), int(self._offsets[-1])))
        hot[np.arange(len(codes))[:, None], codes + self._offsets[:-1]] = 1.0
        return hot

    def _embedded(self, codes: Codes) -> Floats:
        """Coordinates whose squared distances are those of the choices, weighted."""
        parts = [
            np.exp(0.5 * self.parameters["weights"][d]) * self.parameters[f"embedding{self._kind[d]}"][codes[:, d]]
            for d in range(len(self._sizes))
        ]
        return np.concatenate(parts, axis=1)

    def _placed(self, codes: Codes, features: Features) -> Floats:
        """The same of the choices and the features."""
        weights = np.exp(0.5 * self.parameters["features"])
        parts = [weight * features[:, group] for weight, group in zip(weights, self._groups, strict=True)]
        return np.concatenate([self._embedded(codes), *parts], axis=1)

    def _covariance(self, one: Codes, features: Features, other: Codes, others: Features) -> Floats:
        distance = _squared_distances(self._placed(one, features), self._placed(other, others))
        found: Floats = np.exp(self.parameters["scale"][0] - distance)
        return found + self._linear(features) @ self._linear(others).T

    def _linear(self, features: Features) -> Floats:
        """Centred and weighted: products of these are the covariance of what is linear."""
        weights = np.exp(0.5 * self.parameters["linear"])
        found: Floats = np.repeat(weights, self._group_sizes) * (features - self._middle)
        return found

    def _solve(self, covariance: Floats, values: Floats, looks: Floats) -> tuple[Floats, Floats]:
        """K^-1 y, and the inverse of K's Cholesky factor."""
        inverse = np.linalg.inv(np.linalg.cholesky(covariance + np.diag(self._variance(looks))))
        return inverse.T @ (inverse @ values), inverse

    def _variance(self, looks: Floats) -> Floats:
        """Of the noise of the means of so many looks."""
        found: Floats = np.exp(self.parameters["noise"][0]) / looks + JITTER
        return found

    def _gradient(
        self, hot: Floats, apart: Floats, along: Floats, codes: Codes, values: Floats, looks: Floats
    ) -> dict[str, Floats]:
        distance = np.tensordot(np.exp(self.parameters["features"]), apart, 1)
        embedded = self._embedded(codes)
        near = np.exp(self.parameters["scale"][0] - distance - _squared_distances(embedded, embedded))
        slopes = np.exp(self.parameters["linear"])
        alpha, inverse = self._solve(near + np.tensordot(slopes, along, 1), values, looks)
        # d log p / dK = (alpha alpha^T - K^-1) / 2 (Rasmussen and Williams, equation 5.9)
        slope = 0.5 * (np.outer(alpha, alpha) - inverse.T @ inverse)
        through = slope * near
        gradient: dict[str, Floats] = {
            "scale": np.array([through.sum()]),
            "noise": np.array([(np.diag(slope) / looks).sum() * np.exp(self.parameters["noise"][0])]),
            "features": -np.exp(self.parameters["features"]) * np.tensordot(apart, through, 2),
            "linear": slopes * np.tensordot(along, slope, 2),
        }
        met = hot.T @ through @ hot
        weights = np.exp(self.parameters["weights"])
        by_weight = np.zeros(len(weights))
        for d, weight in enumerate(weights):
            name = f"embedding{self._kind[d]}"
            place = self.parameters[name]
            block = met[self._offsets[d] : self._offsets[d + 1], self._offsets[d] : self._offsets[d + 1]]
            by_weight[d] = -weight * (block * _squared_distances(place, place)).sum()
            both = block + block.T
            pull = -2.0 * weight * (both.sum(1)[:, None] * place - both @ place)
            gradient[name] = gradient.get(name, 0.0) + pull
        gradient["weights"] = by_weight
        return gradient

    def _climb(self, gradient: dict[str, Floats]) -> None:
        self._steps += 1
        for name, value in self.parameters.items():
            towards = gradient[name] - (value - self._prior[name]) / _width(name) ** 2
            first, second = self._adam[name]
            first += 0.1 * (towards - first)
            second += 0.01 * (towards**2 - second)
            rise = first / (1 - 0.9**self._steps) / (np.sqrt(second / (1 - 0.99**self._steps)) + 1e-8)
            value += RATE * rise
        np.clip(self.parameters["noise"], *NOISE, out=self.parameters["noise"])


def _width(name: str) -> float:
    """The standard deviation of a parameter's prior."""
    return EMBEDDING_WIDTH if name.startswith("embedding") else WIDTH[name]


def _simplex(size: int) -> Floats:
    """Points [size, max(RANK, size - 1)] that are all at a squared distance of 1."""
    centred = np.eye(size) - 1.0 / size
    basis = np.linalg.svd(centred)[2][: max(size - 1, 1)]
    points = np.zeros((size, max(RANK, size - 1)))
    points[:, : len(basis)] = (centred @ basis.T) / np.sqrt(2.0)
    return points


def _squared_distances(one: Floats, other: Floats) -> Floats:
    found: Floats = (one**2).sum(1)[:, None] + (other**2).sum(1)[None, :] - 2.0 * one @ other.T
    return np.maximum(found, 0.0)
