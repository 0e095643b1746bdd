"""Search algorithms on problems whose answer is known."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
from adaptrain.search.algorithms.base import Algorithm
from adaptrain.search.algorithms.bayesian.ehvi import (
    BELOW,
    HypervolumeSearch,
    hypervolume_gain,
    normal_scores,
    undominated,
)
from adaptrain.search.algorithms.bayesian.expected_improvement import (
    GaussianProcessSearch,
    log_expected_improvement,
    spread,
)
from adaptrain.search.algorithms.bayesian.gaussian_process import GaussianProcess
from adaptrain.search.algorithms.bayesian.predictor import Ensemble, Predictor
from adaptrain.search.algorithms.evolution import RegularizedEvolution
from adaptrain.search.algorithms.local_search import LocalSearch
from adaptrain.search.algorithms.neat import Neat
from adaptrain.search.algorithms.optuna_samplers import GP, NSGA2, TPE
from adaptrain.search.algorithms.random import RandomSearch
from adaptrain.search.algorithms.registry import ALGORITHMS as REGISTERED
from adaptrain.search.algorithms.reinforce import PPO, Policy, Reinforce
from adaptrain.search.algorithms.scalarization import Searcher
from adaptrain.search.spaces.base import Architecture, Dimension, Space
from adaptrain.search.spaces.nasbench201 import NasBench201
from adaptrain.search.spaces.nasbenchgraph import LAYERS, NasBenchGraph

Make = Callable[[Space, int], Algorithm]

ALGORITHMS: list[Make] = [
    RandomSearch,
    RegularizedEvolution,
    LocalSearch,
    GaussianProcessSearch,
    TPE,
    GP,
    NSGA2,
    Reinforce,
    PPO,
    Predictor,
]
BETTER_THAN_RANDOM: list[Make] = [RegularizedEvolution, LocalSearch, GaussianProcessSearch, TPE, NSGA2, Reinforce, PPO]


def test_every_algorithm_that_a_manifest_can_name_is_tested_here() -> None:
    """But for NEAT, whose spaces have no dimensions: test_search_neat.py. The registry imports no predictor: torch."""
    assert {*ALGORITHMS} - {Predictor} | {Neat} == set(REGISTERED.values())


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


def test_what_a_predictor_is_unsure_of_is_what_it_has_not_seen() -> None:
    cells, rng = NasBench201(), np.random.default_rng(0)
    seen, unseen = ([cells.random(rng) for _ in range(60)] for _ in range(2))
    values = np.array([sum(cell) + 3.0 * (cell[3] == 3) for cell in seen])
    ensemble = Ensemble(cells, 0)
    for cell in seen:
        ensemble.add(cell)
    ensemble.train((values - values.mean()) / values.std(), 150)
    mean, deviation = ensemble.predict(seen)
    assert float(np.corrcoef(mean, values)[0, 1]) > 0.9
    assert ensemble.predict(unseen)[1].mean() > deviation.mean()


@pytest.mark.parametrize("make", BETTER_THAN_RANDOM)
def test_better_than_random_search(make: Make) -> None:
    assert best(make) > best(RandomSearch) + 0.3


def test_auto_finds_the_best() -> None:
    assert best(GaussianProcessSearch, seeds=5, dimensions=5) == pytest.approx(5 * 0.7 + 4 * 0.8)


@pytest.mark.parametrize("make", ALGORITHMS)
def test_a_resumed_search_asks_the_same(make: Make) -> None:
    """From the history alone."""
    trials = 14 if make is GP else 30  # it takes its time
    whole = make(space(), 3)
    asked = run(whole, trials)
    resumed = make(space(), 3)
    for architecture in asked[:8]:
        resumed.tell(architecture, score(architecture))
    assert run(resumed, trials, begin=8) == asked[8:]


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


def front(algorithm: Searcher, trials: int, begin: int = 0) -> list[Architecture]:
    """Of two objectives that are against each other, where the first may be 5 at most."""
    asked = []
    for number in range(begin, trials):
        asked.append(one := algorithm.ask(number, asked[-2:-1]).architecture)
        algorithm.tell(one, (float(one.count(1)), float(one.count(2))), max(0.0, one.count(1) - 5.0))
    return asked


@pytest.mark.parametrize(("make", "trials"), [(TPE, 120), (NSGA2, 120), (HypervolumeSearch, 60)])
def test_several_objectives_with_a_constraint(make: Callable[..., Searcher], trials: int) -> None:
    """More hypervolume than random search, and what is told alone decides what is asked."""

    def volume(asked: list[Architecture]) -> int:
        good = [(one.count(1), one.count(2)) for one in asked if one.count(1) <= 5]
        return sum(any(a > x and b > y for a, b in good) for x in range(8) for y in range(8))

    found, drawn = [], []
    for seed in range(4):
        found.append(volume(front(make(space(), seed, objectives=2), trials)))
        drawn.append(volume(run(RandomSearch(space(), seed), trials)))
    assert np.mean(found) > np.mean(drawn) + 2

    asked = front(make(space(), 0, objectives=2), 50)
    resumed = make(space(), 0, objectives=2)
    for one in asked[:30]:
        resumed.tell(one, (float(one.count(1)), float(one.count(2))), max(0.0, one.count(1) - 5.0))
    assert resumed.ask(30, asked[28:29]).architecture == asked[30]


def test_the_ends_of_a_front_are_found() -> None:
    for seed in range(3):
        searcher, asked = HypervolumeSearch(space(), seed, objectives=2), []
        for number in range(50):
            asked.append(one := searcher.ask(number).architecture)
            searcher.tell(one, (float(one.count(1)), float(one.count(2))))
        assert [max(one.count(choice) for one in asked) >= 7 for choice in (1, 2)] == [True, True]


def test_what_is_gained_is_what_more_is_dominated() -> None:
    """Of two candidates, each alone beside a front: the areas can be counted."""
    front = np.array([[0.0, 3.0], [3.0, 0.0]])
    candidates = np.array([[[2.0, 2.0], [1.0, 1.0], [4.0, 0.0], [-0.4, 0.0]]])
    gain = hypervolume_gain(candidates, front, np.abs(np.random.default_rng(0).standard_normal((3000, 2))))
    corner = np.array([-BELOW, -BELOW])

    def area(points: Sequence[Sequence[float]]) -> float:
        grid = np.linspace(0, 8, 1601)[:-1] + 0.0025
        x, y = np.meshgrid(grid, grid)
        inside = np.zeros(x.shape, dtype=bool)
        for point in points:
            inside |= (x < point[0] - corner[0]) & (y < point[1] - corner[1])
        return float(inside.mean() * 64)

    more = np.array([area([*front, one]) - area(front) for one in candidates[0]])
    assert gain[3] == more[3] == 0
    assert gain[:3] / gain[0] == pytest.approx(more[:3] / more[0], rel=0.1)


def test_scores_are_of_ranks_alone_and_a_broken_constraint_is_the_worst() -> None:
    values = np.array([[1.0, 10.0], [2.0, 1000.0], [4.0, 100.0], [3.0, 1.0]])
    scores = normal_scores(values, [0, 0, 0, 0])
    assert scores == pytest.approx(normal_scores(np.log(values), [0, 0, 0, 0]))
    assert (scores[:, 0].argsort() == [0, 1, 3, 2]).all()
    broken = normal_scores(values, [0, 0, 5.0, 1.0])
    assert (broken.argsort(axis=0)[:2].T == [2, 3]).all()
    assert undominated(scores).tolist() == [False, True, True, False]


def test_what_breaks_a_constraint_is_not_picked() -> None:
    algorithm = TPE(space(2, 2), 0)
    for one in ((0, 0), (0, 1), (1, 1)):
        algorithm.tell(one, float(sum(one)), violation=float(sum(one) > 1))
    assert algorithm.pick() == (0, 1)


def test_noise_is_looked_through() -> None:
    """What is picked by the posterior mean, with second looks, is better than what looked best once."""

    def picked(seed: int, noisy: bool) -> float:
        rng = np.random.default_rng(seed)
        algorithm = GaussianProcessSearch(space(4), seed, noisy=noisy)
        for number in range(50):
            architecture = algorithm.ask(number).architecture
            algorithm.tell(architecture, score(architecture) + 1.2 * rng.standard_normal())
        return score(algorithm.pick())

    aware, unaware = (np.mean([picked(seed, noisy) for seed in range(24)]) for noisy in (True, False))
    assert aware > unaware + 0.1


@pytest.mark.parametrize("seed", range(3))
def test_the_end_of_a_noisy_search_tells_the_best_ones_apart(seed: int) -> None:
    def looks(trials: int | None) -> list[list[Architecture]]:
        """What was looked at again before the last three tenths of 100 trials, and in them."""
        rng, found = np.random.default_rng(seed), list[list[Architecture]]([[], []])
        algorithm = GaussianProcessSearch(space(6), seed, noisy=True, trials=trials)
        for number in range(100):
            proposal = algorithm.ask(number)
            if proposal.why.get("again"):
                found[number >= 70].append(proposal.architecture)
            algorithm.tell(proposal.architecture, score(proposal.architecture) + 2.0 * rng.standard_normal())
        return found

    (before, end), (same, unended) = looks(100), looks(None)
    assert before == same
    assert len(end) > 2 * len(unended)
    assert len(set(end)) > len(set(unended))


def test_under_noise_a_choice_that_seems_bad_is_tried_beside_the_best() -> None:
    """The model has seen one choice in two bad architectures only, and would never take it."""
    algorithm, rng = GaussianProcessSearch(space(6), 0, noisy=True), np.random.default_rng(0)
    best = (3, 3, 3, 3, 3, 3)
    for rare in ((0, 0, 0, 0, 0, 2), (0, 0, 2, 0, 0, 0)):
        algorithm.tell(rare, -5.0)
    for _ in range(30):
        near = list(best)
        near[int(rng.integers(6))] = int(rng.choice([0, 1, 3]))
        algorithm.tell(tuple(near), score(tuple(near)))
    asked = [algorithm.ask(number) for number in range(60)]
    unusual = [one.architecture for one in asked if one.why.get("unusual")]
    assert unusual
    for one in unusual:
        changed = [d for d in range(6) if one[d] != best[d]]
        assert len(changed) == 1
        assert one[changed[0]] == 2
    assert {one.why.get("unusual") for one in asked} == {True, False, None}


@pytest.mark.parametrize("seed", range(4, 8))
def test_a_model_that_expects_nothing_is_doubted(seed: int) -> None:
    """A choice is bad wherever it was seen, and good beside the best alone: no model would take it."""

    def deceiving(architecture: Architecture) -> float:
        if architecture[0] != 2:
            return float(sum(architecture))
        return 30.0 if architecture[1:] == (3,) * 5 else -5.0

    algorithm = GaussianProcessSearch(space(6), seed)
    for number in range(60):
        architecture = algorithm.ask(number).architecture
        algorithm.tell(architecture, deceiving(architecture))
    assert algorithm.pick() == (2, 3, 3, 3, 3, 3)


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


def test_what_a_layer_is_worth_is_known_wherever_it_is() -> None:
    """Sixty architectures of 57,000: few of the others are like one of them, but their layers are the same."""
    graphs, rng = NasBenchGraph(), np.random.default_rng(0)
    drawn = np.array([graphs.random(rng) for _ in range(360)])
    layers = drawn[:, 1:]
    values = (layers == LAYERS.index("gcn")).sum(axis=1) - 0.5 * (layers == LAYERS.index("fc")).sum(axis=1)
    values = (values - values.mean()) / values.std()
    model, seen, unseen = GaussianProcess(graphs, 0), drawn[:60], drawn[60:]
    data = seen, graphs.features(seen), values[:60], np.ones(60)
    model.fit(*data, steps=30)
    model.condition(*data)
    mean, _ = model.predict(unseen, graphs.features(unseen))
    assert float(np.corrcoef(mean, values[60:])[0, 1]) > 0.9999


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


def test_the_policy_climbs_the_gradient_of_what_it_is_rewarded_for() -> None:
    rng = np.random.default_rng(0)
    policy = Policy(cells := NasBench201())
    policy.bias += rng.standard_normal(policy.bias.shape)
    policy.weights += rng.standard_normal(policy.weights.shape) * policy._before
    hot, rewards, entropy = policy.hot([cells.random(rng) for _ in range(5)]), rng.standard_normal(5), 0.3

    def objective() -> float:
        log = policy.log_chances(hot)
        return float(np.mean(rewards * (log * hot).sum(1) - entropy * (np.exp(log) * log).sum(1)))

    assert np.exp(policy.log_chances(hot)).sum(1) == pytest.approx(np.full(5, 6))
    bias, weights, step = policy.bias.copy(), policy.weights.copy(), 1e-6
    policy.climb(hot, policy.log_chances(hot), rewards, 1.0, entropy)
    climbed_bias, climbed_weights = policy.bias - bias, policy.weights - weights
    for part, climbed, places in (
        (policy.bias, climbed_bias, [(3,), (17,)]),
        (policy.weights, climbed_weights, [(29, 0), (12, 8), (0, 29)]),
    ):
        for place in places:
            policy.bias[:], policy.weights[:] = bias, weights
            part[place] += step * (place != (0, 29))  # an earlier choice doesn't depend on a later one
            above = objective()
            policy.bias[:], policy.weights[:] = bias, weights
            assert climbed[place] == pytest.approx((above - objective()) / step, rel=1e-3, abs=1e-5)


def test_proximal_steps_end_where_the_policy_has_moved_enough() -> None:
    chances = []
    for rounds in (10, 1000):
        algorithm = PPO(space(1, 2), 0, rate=0.3, entropy=0.0, batch=2, epochs=rounds)
        for architecture, value in (((0,), 0.0), ((1,), 1.0)):
            algorithm.tell(architecture, value)
        chances.append(float(np.exp(algorithm.policy.log_chances(algorithm.policy.hot([(1,)])))[0, 1]))
    assert 0.6 < chances[0] < 0.7
    assert chances[1] == chances[0]
