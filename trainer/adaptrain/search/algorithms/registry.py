"""The algorithm and the pruner that a manifest names."""

from adaptrain_api.search import AlgorithmName, Pruning, SearchAlgorithm

from adaptrain.errors import InvalidJob
from adaptrain.load import call
from adaptrain.search.algorithms.auto import Auto
from adaptrain.search.algorithms.base import Algorithm
from adaptrain.search.algorithms.controller import PPO, Reinforce
from adaptrain.search.algorithms.evolution import RegularizedEvolution
from adaptrain.search.algorithms.fronts import Fronts
from adaptrain.search.algorithms.local_search import LocalSearch
from adaptrain.search.algorithms.neat import Neat
from adaptrain.search.algorithms.objectives import Searcher, Single
from adaptrain.search.algorithms.oneshot import METHODS, CellSpace, OneShot
from adaptrain.search.algorithms.optuna_samplers import GP, NSGA2, TPE, OptunaAlgorithm
from adaptrain.search.algorithms.pruning import Hyperband, Median, Pruner, SuccessiveHalving
from adaptrain.search.algorithms.random import RandomSearch
from adaptrain.search.spaces.base import Space
from adaptrain.search.spaces.topology import Topology

ALGORITHMS: dict[AlgorithmName, type[Algorithm]] = {
    "auto": Auto,
    "random": RandomSearch,
    "localSearch": LocalSearch,
    "evolution": RegularizedEvolution,
    "tpe": TPE,
    "gp": GP,
    "nsga2": NSGA2,
    "reinforce": Reinforce,
    "ppo": PPO,
    "neat": Neat,
}
"""And ``predictor``, which takes torch, and the one-shot ``METHODS``."""
PRUNERS: dict[str, type[Pruner]] = {
    "median": Median,
    "successiveHalving": SuccessiveHalving,
    "hyperband": Hyperband,
}


def make_algorithm(spec: SearchAlgorithm, space: Space, seed: int, objectives: int) -> Searcher:
    """
    Raises:
        InvalidJob: it doesn't take these arguments, or not this space.
    """
    if spec.name in METHODS:
        assert isinstance(space, CellSpace)  # the API takes no other one
        return OneShot(space, seed, call("algorithm", METHODS[spec.name], spec.args))
    chosen = ALGORITHMS[spec.name] if spec.name != "predictor" else _predictor()
    if isinstance(space, Topology) and chosen is not Neat:
        raise InvalidJob(f"algorithm.name: {spec.name} needs a space of choices: set it to neat, or change space.name")
    if chosen is Auto and objectives > 1:
        return call("algorithm", Fronts, spec.args, space=space, seed=seed, objectives=objectives)
    if issubclass(chosen, OptunaAlgorithm):
        return call("algorithm", chosen, spec.args, space=space, seed=seed, objectives=objectives)
    return Single(call("algorithm", chosen, spec.args, space=space, seed=seed), objectives)


def _predictor() -> type[Algorithm]:
    from adaptrain.search.algorithms.predictor import Predictor

    return Predictor


def make_pruner(spec: Pruning | None) -> Pruner | None:
    """
    Raises:
        InvalidJob: it doesn't take these arguments.
    """
    return None if spec is None else call("pruning", PRUNERS[spec.name], spec.args)
