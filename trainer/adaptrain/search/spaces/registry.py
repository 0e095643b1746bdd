"""The space that a manifest names."""

from adaptrain_api.search.space import SearchSpace

from adaptrain.config.imports import call_with_args, import_callable
from adaptrain.errors import InvalidJob
from adaptrain.search.spaces.base import Space
from adaptrain.search.spaces.cells import Darts, Nasnet
from adaptrain.search.spaces.chains import Cnn, Mlp, Transformer
from adaptrain.search.spaces.nasbench201 import NasBench201
from adaptrain.search.spaces.nasbenchgraph import NasBenchGraph
from adaptrain.search.spaces.parameters import Parameters
from adaptrain.search.spaces.product import Product
from adaptrain.search.spaces.topology import Topology

SPACES: dict[str, type[Space]] = {
    "nasbench201": NasBench201,
    "nasnet": Nasnet,
    "darts": Darts,
    "cnn": Cnn,
    "mlp": Mlp,
    "transformer": Transformer,
    "nasbenchgraph": NasBenchGraph,
    "topology": Topology,
}


def make_space(spec: SearchSpace) -> Space:
    """
    Raises:
        InvalidJob: there is no such space, it doesn't take these arguments, or nothing in it can be built.
    """
    try:
        written = Parameters(spec.parameters) if spec.parameters else None
    except ValueError as error:
        raise InvalidJob(f"space.parameters: {error}") from error
    if spec.name is None:
        assert written is not None
        return written
    named = call_with_args("space", SPACES.get(spec.name) or import_callable("space", spec.name), spec.args)
    if not isinstance(named, Space):
        raise InvalidJob(
            f"space.name: {spec.name} must return an adaptrain.search.spaces.base.Space, not {type(named).__name__}"
        )
    return named if written is None else Product(named, written)
