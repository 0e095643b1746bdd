"""NEAT on XOR (20 seeds) and CartPole-v1 (10 seeds), beside random search over minimal networks with as many trials.

XOR is solved if all four outputs are on the right side of 0.5 (Stanley and Miikkulainen, 2002, section 4.1). CartPole
is if the first network that reaches 475 steps in 20 episodes does so in the mean of 100 others. Value: part of the
seeds that solve CartPole.
"""

import argparse
import functools
import multiprocessing
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from adaptrain.search.algorithms.neat import Neat
from adaptrain.search.algorithms.random import RandomSearch
from adaptrain.search.spaces.base import Architecture
from adaptrain.search.spaces.topology import Topology

from bench.report import emit

XOR, CARTPOLE = Topology(2, 1), Topology(4, 1)
CASES = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=float)
ANSWERS = np.array([0, 1, 1, 0], dtype=float)
TRIALS = {"xor": 15_000, "cartpole": 3_000}
BARS = {"xor": 0.95, "cartpole": 0.9}
SOLVED, EPISODES = 475.0, 20


def xor(genome: Architecture) -> tuple[float, bool]:
    """4 less the squared errors; and whether it is solved."""
    said = XOR.network(genome)(CASES)[:, 0]
    return float(4 - ((said - ANSWERS) ** 2).sum()), bool(((said > 0.5) == (ANSWERS > 0.5)).all())


@functools.cache
def poles(episodes: int) -> Any:
    return gymnasium.make_vec("CartPole-v1", num_envs=episodes, vectorization_mode="vector_entry_point")


def steps(genome: Architecture, seed: int, episodes: int = EPISODES) -> float:
    """The mean over episodes, at most 500."""
    forward, world = CARTPOLE.network(genome), poles(episodes)
    seen, _ = world.reset(seed=seed)
    alive, lasted = np.ones(episodes, dtype=bool), np.zeros(episodes)
    while alive.any():
        seen, _, fell, ended, _ = world.step((forward(np.asarray(seen, dtype=float))[:, 0] > 0.5).astype(int))
        lasted += alive
        alive &= ~(fell | ended)
    return float(lasted.mean())


def trials(make: Callable[..., Any], task: str, seed: int) -> int | None:
    """How many it took to solve it."""
    algorithm = make(XOR if task == "xor" else CARTPOLE, seed)
    for number in range(TRIALS[task]):
        genome = algorithm.ask(number).architecture
        if task == "xor":
            value, solved = xor(genome)
        else:
            value = steps(genome, seed=1_000_000 * seed + number)
            solved = value >= SOLVED
        if solved and task == "cartpole":
            solved = steps(genome, seed=1_000_000 * seed + 999_999, episodes=100) >= SOLVED
            return number + 1 if solved else None
        if solved:
            return number + 1
        algorithm.tell(genome, value)
    return None


def one(task: tuple[Callable[..., Any], str, int]) -> int | None:
    return trials(*task)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--xor", type=int, default=20)
    parser.add_argument("--cartpole", type=int, default=10)
    arguments = parser.parse_args()
    solved: dict[tuple[str, str], float] = {}
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for name, make in (("NEAT", Neat), ("random search", RandomSearch)):
            for task, seeds in (("xor", arguments.xor), ("cartpole", arguments.cartpole)):
                tasks = [(make, task, arguments.first_seed + n) for n in range(seeds)]
                taken = [n for n in pool.imap_unordered(one, tasks) if n is not None]
                solved[name, task] = len(taken) / seeds
                print(f"{name:>14} {task:>9} {len(taken)} of {seeds}, trials {sorted(taken)}", flush=True)
    ok = all(solved["NEAT", task] >= bar for task, bar in BARS.items())
    emit(
        "neat",
        solved["NEAT", "cartpole"],
        "of seeds",
        "random search",
        solved["random search", "cartpole"],
        ok,
        xor=solved["NEAT", "xor"],
        xor_random=solved["random search", "xor"],
    )
