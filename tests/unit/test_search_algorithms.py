"""Search algorithms on problems whose answer is known."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from adaptrain.search.algorithms.auto import Auto, log_expected_improvement, spread
from adaptrain.search.algorithms.base import Algorithm
from adaptrain.search.algorithms.evolution import RegularizedEvolution
from adaptrain.search.algorithms.gaussian import GaussianProcess
from adaptrain.search.algorithms.local_search import LocalSearch
from adaptrain.search.algorithms.random import RandomSearch
from adaptrain.search.spaces.base import Architecture, Dimension, Space
from adaptrain.search.spaces.nasbench201 import NasBench201

Make = Callable[[Space, int], Algorithm]
ALGORITHMS: list[Make] = [RandomSearch, RegularizedEvolution, LocalSearch, Auto]
BETTER_THAN_RANDOM: list[Make] = [RegularizedEvolution, LocalSearch, Auto]


def space(dimensions: int = 8, choices: int = 4) -> Space:
    return Space(tuple(Dimension(f"d{n}", tuple(map(str, range(choices))), "choice") for n in range(dimensions)))


def score(architecture: Architecture) -> float:
    """Each choice has a worth, and equal neighbours help: no choice is best by itself."""
    return sum((0.0, 1.0, 0.4, 0.7)[c] for c in architecture) + sum(
        0.8 for a, b in pairwise(architecture) if a == b == 3
    )


def run(algorithm: Algorithm, trials: int, begin: int = 0) -> list[Architecture]:
    asked = []
    for number in range(begin, trials):
        asked.append(algorithm.ask(number).architecture)
        algorithm.tell(asked[-1], score(asked[-1]))
    return asked


def best(make: Make, seeds: int = 10, dimensions: int = 8) -> float:
    return float(np.mean([max(map(score, run(make(space(dimensions), seed), 60))) for seed in range(seeds)]))


@pytest.mark.parametrize("make", BETTER_THAN_RANDOM)
def test_better_than_random_search(make: Make) -> None:
    assert best(make) > best(RandomSearch) + 0.3


def test_auto_finds_the_best() -> None:
    assert best(Auto, seeds=5, dimensions=5) == pytest.approx(5 * 0.7 + 4 * 0.8)


@pytest.mark.parametrize("make", ALGORITHMS)
def test_a_resumed_search_asks_the_same(make: Make) -> None:
    """From the history alone."""
    whole = make(space(), 3)
    asked = run(whole, 30)
    resumed = make(space(), 3)
    for architecture in asked[:8]:
        resumed.tell(architecture, score(architecture))
    assert run(resumed, 30, begin=8) == asked[8:]


@pytest.mark.parametrize("make", ALGORITHMS)
def test_what_is_pending_is_not_asked_again(make: Make) -> None:
    algorithm, few = make(space(3, 3), 0), 24
    pending: list[Architecture] = []
    for number in range(few):
        pending.append(algorithm.ask(number, pending).architecture)
        if number % 4 == 3:
            for architecture in pending:
                algorithm.tell(architecture, score(architecture))
            pending = []
    keys = [algorithm.space.key(architecture) for architecture, _ in algorithm.told]
    if not isinstance(algorithm, RegularizedEvolution):  # whose children may be like others
        assert len(set(keys)) == len(keys) == few


@pytest.mark.parametrize("make", ALGORITHMS)
def test_failures_and_a_space_that_is_used_up(make: Make) -> None:
    algorithm = make(space(2, 2), 0)
    for number in range(12):
        architecture = algorithm.ask(number).architecture
        algorithm.tell(architecture, math.nan if sum(architecture) == 1 else score(architecture))
    assert {architecture for architecture, _ in algorithm.told} == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_noise_is_looked_through() -> None:
    """What is picked by the posterior mean, with second looks, is better than what looked best once."""

    def picked(seed: int, noisy: bool) -> float:
        rng = np.random.default_rng(seed)
        algorithm = Auto(space(4), seed, noisy=noisy)
        for number in range(50):
            architecture = algorithm.ask(number).architecture
            algorithm.tell(architecture, score(architecture) + 0.4 * rng.standard_normal())
        return score(algorithm.pick())

    aware, unaware = (np.mean([picked(seed, noisy) for seed in range(8)]) for noisy in (True, False))
    assert aware > unaware + 0.1


def test_the_likelihood_rises_along_its_gradient() -> None:
    cells = NasBench201()
    rng = np.random.default_rng(0)
    codes = np.array([cells.random(rng) for _ in range(40)])
    values = spread(np.array([sum(code) + (code[0] == 3) for code in codes.tolist()], dtype=float))
    data = codes, cells.features(codes), values, np.ones(40)
    model = GaussianProcess(cells, 0)
    before = model.log_likelihood(*data)
    model.fit(*data, steps=30)
    model.condition(*data)
    assert model.log_likelihood(*data) > before + 1
    mean, deviation = model.predict(codes, cells.features(codes))
    assert float(np.corrcoef(mean, values)[0, 1]) > 0.9
    assert (deviation < 1).all()


def test_the_gradient_is_that_of_the_likelihood() -> None:
    cells = NasBench201()
    rng = np.random.default_rng(1)
    codes = np.array([cells.random(rng) for _ in range(15)])
    data = codes, cells.features(codes), rng.standard_normal(15), rng.integers(1, 5, size=15).astype(float)
    model = GaussianProcess(cells, 0)
    slope = model.gradient(*data)
    for name, part in model.parameters.items():
        place = tuple(rng.integers(size) for size in part.shape)
        step = 1e-5
        part[place] += step
        above = model.log_likelihood(*data)
        part[place] -= 2 * step
        below = model.log_likelihood(*data)
        part[place] += step
        assert slope[name][place] == pytest.approx((above - below) / (2 * step), rel=1e-3, abs=1e-5), name


def test_expected_improvement() -> None:
    draws = np.random.default_rng(0).standard_normal(400_000)
    for mean, deviation in ((0.3, 1.0), (-1.0, 0.5), (-2.0, 1.0)):
        expected = np.maximum(mean + deviation * draws, 0).mean()
        found = math.exp(log_expected_improvement(np.array([mean]), np.array([deviation]), 0.0)[0])
        assert found == pytest.approx(expected, rel=0.02)
    far = log_expected_improvement(np.array([-10.0, -20.0, -40.0]), np.ones(3), 0.0)
    assert np.isfinite(far).all()
    assert (np.diff(far) < 0).all()
