"""A search that trains: convolutional networks on digits, for accuracy and few parameters, by ``auto`` and at random.

Value: the mean over seeds of what 60 trials' Pareto front dominates (its hypervolume), with accuracy as it is and
parameters by their logarithm, each from the worst to the best of all trials of a seed, so that 1 is the whole square.
"""

import argparse
import math
import multiprocessing
import statistics
import sys

from adaptrain.search.algorithms.registry import make_algorithm
from adaptrain.search.spaces.base import Architecture
from adaptrain.search.spaces.registry import make_space
from adaptrain.search.training import Training
from adaptrain_api.search import ArchitectureSearchSpec

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
    """Accuracy and -log parameters of each trial of one search."""
    name, seed, trials = task
    spec = ArchitectureSearchSpec.model_validate({**SPEC, "seed": seed, "algorithm": {"name": name}})
    space = make_space(spec.space)
    searcher = make_algorithm(spec.algorithm, space, seed, len(spec.objectives))
    training = Training(spec, None)
    found: list[Point] = []
    for number in range(trials):
        architecture: Architecture = searcher.ask(number).architecture
        metrics = training.run(space.choice(architecture), lambda step, metrics: None)
        searcher.tell(architecture, (metrics["val/accuracy"], -metrics["parameters"]))
        found.append((metrics["val/accuracy"], -math.log(metrics["parameters"])))
    print(f"{name} with seed {seed}: the best accuracy is {max(found)[0]:.4f}", file=sys.stderr, flush=True)
    return found


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
    volumes: dict[str, list[float]] = {name: [] for name in NAMES}
    for seed in seeds:
        both = [point for name in NAMES for point in fronts[name, seed, arguments.trials]]
        low, high = (tuple(side(one[n] for one in both) for n in (0, 1)) for side in (min, max))
        for name in NAMES:
            volumes[name].append(dominated(fronts[name, seed, arguments.trials], low, high))
    ours, peer = (statistics.mean(volumes[name]) for name in NAMES)
    each = {name: [round(one, 4) for one in found] for name, found in volumes.items()}
    better = sum(a > b for a, b in zip(volumes["auto"], volumes["random"], strict=True))
    emit("front", ours, "of the square", "random", peer, better == len(seeds), better=better, each=each)
