"""Networks of any topology, and their evolution."""

import json

import numpy as np
import pytest
from adaptrain.search.algorithms.neat import Neat
from adaptrain.search.spaces.base import Architecture
from adaptrain.search.spaces.topology import Topology

from bench.neat import CARTPOLE, XOR, steps, trials, xor

HIDDEN = 50
"""The number of a hidden node."""


def test_a_network_computes_what_its_genome_says() -> None:
    genome = (
        (0, 3, 0.5, True),
        (0, HIDDEN, 1.0, True),
        (1, 3, 9.0, False),
        (2, HIDDEN, -0.2, True),
        (HIDDEN, 3, 2.0, True),
    )
    given = np.array([[0.3, 1.0], [-1.0, 0.0]])
    hidden = 1 / (1 + np.exp(-4.9 * (given[:, 0] - 0.2)))
    expected = 1 / (1 + np.exp(-4.9 * (0.5 * given[:, 0] + 2.0 * hidden)))
    assert XOR.network(genome)(given)[:, 0] == pytest.approx(expected)


def test_what_has_a_cycle_or_enters_an_input_is_not_valid() -> None:
    assert XOR.is_valid(((0, 3, 1.0, True), (0, HIDDEN, 1.0, True), (HIDDEN, 3, 1.0, False)))
    assert not XOR.is_valid(((0, 50, 1.0, True), (50, 51, 1.0, True), (51, 50, 1.0, False), (51, 3, 1.0, True)))
    assert not XOR.is_valid(((0, 1, 1.0, True),))
    assert not XOR.is_valid(((0, 3, 1.0, True), (3, HIDDEN, 1.0, True)))


def test_mutants_and_children_stay_valid_and_keep_what_matters() -> None:
    rng, space = np.random.default_rng(0), Topology(3, 2)
    grown = [space.random(rng) for _ in range(10)]
    for _ in range(600):
        one, other = (grown[int(rng.integers(len(grown)))] for _ in range(2))
        grown[int(rng.integers(len(grown)))] = mutant = space.mutate(one, rng)
        child = space.crossover(one, other, rng)
        assert space.is_valid(mutant)
        assert [gene[:2] for gene in child] == [gene[:2] for gene in one]
        assert {gene[:3] for gene in child} <= {gene[:3] for gene in (*one, *other)}
    assert max(map(len, grown)) > 12
    read = json.loads(json.dumps(grown[0]))
    assert tuple(tuple(gene) for gene in read) == grown[0]
    assert hash(grown[0]) is not None


def test_the_same_innovation_has_the_same_marking_wherever_it_arises() -> None:
    space, hidden = Topology(1, 1), set()
    for seed in range(200):
        rng = np.random.default_rng(seed)
        hidden |= {b for _, b, *_ in space.mutate(space.random(rng), rng)} - {2}
    assert len(hidden) == 2  # a node on either connection


def test_the_compatibility_distance() -> None:
    algorithm = Neat(XOR, 0)
    one: Architecture = ((0, 3, 1.0, True), (1, 3, 1.0, True), (2, 3, 1.0, True))
    other: Architecture = ((0, 3, 2.0, True), (1, 3, 1.0, False), (0, HIDDEN, 1.0, True), (HIDDEN, 3, 1.0, True))
    for genome in (one, other):
        algorithm.tell(genome, 0.0)
    # One disjoint gene, two excess ones, and weights that are 0.5 apart in the two that match.
    assert algorithm.distance(one, other) == algorithm.distance(other, one) == pytest.approx(3 + 0.4 * 0.5)
    assert algorithm.distance(one, one) == 0


def test_a_resumed_evolution_asks_the_same() -> None:
    def run(algorithm: Neat, begin: int) -> list[Architecture]:
        asked = []
        for number in range(begin, 200):
            asked.append(algorithm.ask(number).architecture)
            algorithm.tell(asked[-1], xor(asked[-1])[0])
        return asked

    asked = run(Neat(XOR, 3, population=30), 0)
    resumed = Neat(XOR, 3, population=30)
    for genome in asked[:100]:
        resumed.tell(genome, xor(genome)[0])
    assert run(resumed, 100) == asked[100:]


def test_failures_have_no_children() -> None:
    algorithm = Neat(XOR, 0, population=10)
    for number in range(20):
        algorithm.tell(algorithm.ask(number).architecture, np.nan)
    good = algorithm.ask(20).architecture
    algorithm.tell(good, 1.0)
    for number in range(21, 30):
        algorithm.tell(algorithm.ask(number).architecture, np.nan)
    assert all(algorithm.ask(number).why["fitness"] == 1.0 for number in range(30, 40))


def test_it_solves_xor_which_no_minimal_network_does() -> None:
    assert trials(Neat, "xor", 0) is not None
    rng = np.random.default_rng(0)
    assert not any(xor(XOR.random(rng))[1] for _ in range(1000))


def test_it_balances_the_pole() -> None:
    algorithm = Neat(CARTPOLE, 0, population=50)
    for number in range(400):
        genome = algorithm.ask(number).architecture
        if (value := steps(genome, seed=number, episodes=5)) >= 475:
            break
        algorithm.tell(genome, value)
    assert number > 20
    assert steps(genome, seed=1000) > 400
