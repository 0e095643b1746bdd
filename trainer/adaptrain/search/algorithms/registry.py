"""The algorithm that a manifest names."""

from adaptrain_api.search import AlgorithmName, SearchAlgorithm

from adaptrain.load import call
from adaptrain.search.algorithms.auto import Auto
from adaptrain.search.algorithms.base import Algorithm
from adaptrain.search.algorithms.evolution import RegularizedEvolution
from adaptrain.search.algorithms.local_search import LocalSearch
from adaptrain.search.algorithms.objectives import Searcher, Single
from adaptrain.search.algorithms.random import RandomSearch
from adaptrain.search.spaces.base import Space

ALGORITHMS: dict[AlgorithmName, type[Algorithm]] = {
    "auto": Auto,
    "random": RandomSearch,
    "localSearch": LocalSearch,
    "evolution": RegularizedEvolution,
}


def make_algorithm(spec: SearchAlgorithm, space: Space, seed: int, objectives: int) -> Searcher:
    """
    Raises:
        InvalidJob: it doesn't take these arguments.
    """
    return Single(call("algorithm", ALGORITHMS[spec.name], spec.args, space=space, seed=seed), objectives)
