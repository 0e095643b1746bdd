"""The algorithm and the pruner that a manifest names."""

from adaptrain_api.search.job import AlgorithmName, ArchitectureSearchSpec, Pruning

from adaptrain.config.imports import call_with_args
from adaptrain.errors import InvalidJob
from adaptrain.search.algorithms.base import Algorithm
from adaptrain.search.algorithms.bayesian.ehvi import HypervolumeSearch
from adaptrain.search.algorithms.bayesian.expected_improvement import GaussianProcessSearch
from adaptrain.search.algorithms.evolution import RegularizedEvolution
from adaptrain.search.algorithms.local_search import LocalSearch
from adaptrain.search.algorithms.neat import Neat
from adaptrain.search.algorithms.oneshot import METHODS, CellSpace, OneShot
from adaptrain.search.algorithms.optuna_samplers import GP, NSGA2, TPE, OptunaAlgorithm
from adaptrain.search.algorithms.pruners import Hyperband, Median, Pruner, SuccessiveHalving
from adaptrain.search.algorithms.random import RandomSearch
from adaptrain.search.algorithms.reinforce import PPO, Reinforce
from adaptrain.search.algorithms.scalarization import ScalarizedSearcher, Searcher
from adaptrain.search.spaces.base import Space
from adaptrain.search.spaces.topology import Topology

ALGORITHMS: dict[AlgorithmName, type[Algorithm]] = {
    "auto": GaussianProcessSearch,
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


def make_algorithm(spec: ArchitectureSearchSpec, space: Space) -> Searcher:
    """
    Args:
        space: the spec's, made.

    Raises:
        InvalidJob: it doesn't take these arguments, or not this space.
    """
    name, args, objectives = spec.algorithm.name, spec.algorithm.args, len(spec.objectives)
    if name in METHODS:
        assert isinstance(space, CellSpace)  # the API takes no other one
        return OneShot(space, spec.seed, call_with_args("algorithm", METHODS[name], args))
    chosen = ALGORITHMS[name] if name != "predictor" else _predictor()
    if isinstance(space, Topology) and chosen is not Neat:
        raise InvalidJob(f"algorithm.name: {name} needs a space of choices: set it to neat, or change space.name")
    if chosen is GaussianProcessSearch and objectives > 1:
        return call_with_args("algorithm", HypervolumeSearch, args, space=space, seed=spec.seed, objectives=objectives)
    if issubclass(chosen, OptunaAlgorithm):
        return call_with_args("algorithm", chosen, args, space=space, seed=spec.seed, objectives=objectives)
    own = {"trials": spec.budget.trials} if chosen is GaussianProcessSearch else {}
    return ScalarizedSearcher(call_with_args("algorithm", chosen, args, space=space, seed=spec.seed, **own), objectives)


def _predictor() -> type[Algorithm]:
    from adaptrain.search.algorithms.bayesian.predictor import Predictor

    return Predictor


def make_pruner(spec: Pruning | None) -> Pruner | None:
    """
    Raises:
        InvalidJob: it doesn't take these arguments.
    """
    return None if spec is None else call_with_args("pruning", PRUNERS[spec.name], spec.args)
