"""A search that trains: convolutional networks on digits, for accuracy and few parameters, by ``auto`` and at random.

Value: the mean over seeds of what 60 trials' Pareto front dominates (its hypervolume), with accuracy as it is and
parameters by their logarithm, each from the worst to the best of all trials of a seed, so that 1 is the whole square.
The same with parameters as they are is told beside it.
"""

import argparse
import math
import multiprocessing
import statistics
import sys

from adaptrain.search.algorithms.registry import make_algorithm
from adaptrain.search.evaluation.training_trial import Training
from adaptrain.search.spaces.base import Architecture
from adaptrain.search.spaces.registry import make_space
from adaptrain_api.search.job import ArchitectureSearchSpec

from bench.report import emit

FIRST_SEED = 1000
NAMES = ("auto", "random")
SPEC = {
    "space": {"name": "cnn", "args": {"depths": [1, 2, 3, 4], "widths": [4, 8, 16, 32]}},
    "objectives": [{"metric": "val/accuracy", "goal": "maximize"}, {"metric": "parameters", "goal": "minimize"}],
    "budget": {"trials": 60},
    "trial": {
        "data": {"name": "digits"},
        "phases": [
            {
                "name": "train",
                "type": "supervised",
                "optimizer": {"learningRate": 0.005},
                "batch": {"size": 64},
                "stop": {"epochs": 4},
            }
        ],
    },
}

Point = tuple[float, float]


def points(task: tuple[str, int, int]) -> list[Point]:
    """Accuracy and -parameters of each trial of one search."""
    name, seed, trials = task
    spec = ArchitectureSearchSpec.model_validate({**SPEC, "seed": seed, "algorithm": {"name": name}})
    space = make_space(spec.space)
    searcher = make_algorithm(spec, space)
    training = Training(spec, None)
    found: list[Point] = []
    for number in range(trials):
        architecture: Architecture = searcher.ask(number).architecture
        metrics = training.run(space.choice(architecture), lambda step, metrics: None)
        found.append((metrics["val/accuracy"], -metrics["parameters"]))
        searcher.tell(architecture, found[-1])
    print(f"{name} with seed {seed}: the best accuracy is {max(found)[0]:.4f}", file=sys.stderr, flush=True)
    return found


def volumes(fronts: dict[str, list[Point]]) -> dict[str, float]:
    """Of each front, the part of the rectangle of all points that it dominates."""
    every = [point for front in fronts.values() for point in front]
    low, high = (tuple(side(one[n] for one in every) for n in (0, 1)) for side in (min, max))
    return {name: dominated(front, low, high) for name, front in fronts.items()}


def dominated(found: list[Point], low: Point, high: Point) -> float:
    """The part of the rectangle between two points that is dominated by some point."""
    area, reached = 0.0, low[1]
    for x, y in sorted(found, reverse=True):
        if y > reached:
            area += (x - low[0]) * (y - reached)
            reached = y
    return area / ((high[0] - low[0]) * (high[1] - low[1]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    arguments = parser.parse_args()
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    tasks = [(name, seed, arguments.trials) for seed in seeds for name in NAMES]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        fronts = dict(zip(tasks, pool.map(points, tasks, 1), strict=True))
    by_logarithm, as_they_are = [], []
    for seed in seeds:
        plain = {name: fronts[name, seed, arguments.trials] for name in NAMES}
        as_they_are.append(volumes(plain))
        by_logarithm.append(volumes({name: [(x, -math.log(-y)) for x, y in front] for name, front in plain.items()}))
    ours, peer = (statistics.mean(one[name] for one in by_logarithm) for name in NAMES)
    better = [sum(one["auto"] > one["random"] for one in found) for found in (by_logarithm, as_they_are)]
    each = {name: [round(one[name], 4) for one in by_logarithm] for name in NAMES}
    plain_each = {name: [round(one[name], 4) for one in as_they_are] for name in NAMES}
    more = {"better": better[0], "each": each, "better_as_they_are": better[1], "as_they_are": plain_each}
    emit("front", ours, "of the square", "random", peer, better[0] == len(seeds), **more)
