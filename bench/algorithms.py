"""100 evaluations of NAS-Bench-201's mean validation accuracy by every algorithm that a table can serve, beside random
search. Value: the smallest lead over it, in percentage points, of any algorithm on any data set.
"""

import argparse
import functools
import multiprocessing
import statistics
from importlib import import_module
from typing import Any

from bench.report import emit
from bench.tables import SPACE, best_of_means, nasbench201, search

ALGORITHMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "random": ("random", "RandomSearch", {}),
    "local search": ("local_search", "LocalSearch", {}),
    "regularized evolution": ("evolution", "RegularizedEvolution", {}),
    "evolution with crossover": ("evolution", "RegularizedEvolution", {"crossover": 0.5}),
    "REINFORCE": ("controller", "Reinforce", {}),
    "PPO": ("controller", "PPO", {}),
    "NSGA-II": ("optuna_samplers", "NSGA2", {}),
    "TPE": ("optuna_samplers", "TPE", {}),
    "predictor": ("predictor", "Predictor", {}),
    "auto": ("auto", "Auto", {}),
    "GP": ("optuna_samplers", "GP", {}),
}
"""Module, class and arguments. Each process imports what it runs, since few need torch."""
DATASETS = ("cifar10", "cifar100", "imagenet")
FIRST_SEED = 1000
"""Settings were chosen on seeds below 20."""


def make(name: str, seed: int) -> Any:
    module, kind, arguments = ALGORITHMS[name]
    return getattr(import_module(f"adaptrain.search.algorithms.{module}"), kind)(SPACE, seed, **arguments)


@functools.cache
def table(dataset: str) -> dict[Any, float]:
    return best_of_means(nasbench201(dataset))


def best(task: tuple[str, str, int]) -> float:
    name, dataset, seed = task
    return max(table(dataset)[cell] for cell in search(make(name, seed), table(dataset).__getitem__))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--only", nargs="+", default=list(ALGORITHMS), choices=ALGORITHMS)
    arguments = parser.parse_args()
    found: dict[str, list[float]] = {}
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for name in dict.fromkeys(("random", *arguments.only)):
            seeds = range(FIRST_SEED, FIRST_SEED + arguments.seeds)
            each = [pool.map(best, [(name, dataset, seed) for seed in seeds], 1) for dataset in DATASETS]
            found[name] = [statistics.mean(one) for one in each]
            errors = [statistics.stdev(one) / len(one) ** 0.5 for one in each]
            columns = "  ".join(f"{mean:.3f} +- {error:.3f}" for mean, error in zip(found[name], errors, strict=True))
            print(f"{name:>24}  {columns}", flush=True)
    leads = {
        name: min(mean - drawn for mean, drawn in zip(means, found["random"], strict=True))
        for name, means in found.items()
        if name != "random"
    }
    last = min(leads, key=lambda name: leads[name])
    accuracy = {name: [round(mean, 3) for mean in means] for name, means in found.items()}
    emit("algorithms", leads[last], "percentage points", "random", 0.0, leads[last] > 0, last=last, accuracy=accuracy)
