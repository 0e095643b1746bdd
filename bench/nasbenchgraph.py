"""100 evaluations of NAS-Bench-Graph's validation accuracy on Cora, CiteSeer and PubMed: our default beside regularized
evolution, local search and Optuna's TPE. Regret: how much the table's best is better than the best found, in percentage
points. Value: our mean regret over evolution's. ``--measure perf``: the same with test accuracy.
"""

import argparse
import functools
import multiprocessing
import statistics
from typing import Any

from adaptrain.search.algorithms.bayesian.expected_improvement import GaussianProcessSearch
from adaptrain.search.spaces.nasbenchgraph import NasBenchGraph

from bench.nasbench201 import FIRST_SEED, PEERS
from bench.report import emit
from bench.tables import nasbenchgraph, search

DATASETS = ("cora", "citeseer", "pubmed")
BAR = 0.5
EVOLUTION = "regularized evolution"
table = functools.cache(nasbenchgraph)


def regret(task: tuple[str, str, str, int]) -> float:
    name, dataset, measure, seed = task
    values = table(dataset, measure)
    algorithm = (PEERS | {"auto": GaussianProcessSearch})[name](NasBenchGraph(), seed)
    return max(values.values()) - max(values[one] for one in search(algorithm, values.__getitem__))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--measure", choices=("valid_perf", "perf"), default="valid_perf")
    arguments = parser.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + arguments.seeds)
    means: dict[str, float] = {}
    ours: dict[str, float] = {}
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for name in ("auto", *PEERS):
            found: dict[str, Any] = {}
            for dataset in DATASETS:
                found[dataset] = pool.map(regret, [(name, dataset, arguments.measure, seed) for seed in seeds])
                mean, error = statistics.mean(found[dataset]), statistics.stdev(found[dataset]) / len(seeds) ** 0.5
                print(f"{name:>22} {dataset:>9} {mean:.3f} +- {error:.3f}", flush=True)
            means[name] = statistics.mean(statistics.mean(each) for each in found.values())
            if name == "auto":
                ours = {dataset: round(statistics.mean(each), 3) for dataset, each in found.items()}
    value = means["auto"] / means[EVOLUTION]
    more = {"measure": arguments.measure, "regrets": {name: round(mean, 3) for name, mean in means.items()}}
    emit("nasbenchgraph", value, "of evolution's regret", EVOLUTION, 1.0, value <= BAR, auto=ours, **more)
