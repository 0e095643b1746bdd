"""Models: ours by name, the user's by ``module:callable``."""

from collections.abc import Callable

from adaptrain_api.components import ModelSource
from torch import nn

from adaptrain.data import DataSet
from adaptrain.elastic.state import check_model
from adaptrain.errors import InvalidJob
from adaptrain.load import call, find
from adaptrain.models.cnn import cnn
from adaptrain.models.darts import darts
from adaptrain.models.graph import nasbenchgraph
from adaptrain.models.mlp import mlp
from adaptrain.models.nasbench201 import nasbench201
from adaptrain.models.nasnet import nasnet
from adaptrain.models.resnet import resnet
from adaptrain.models.transformer import transformer

BUILT_IN: dict[str, Callable[..., nn.Module]] = {
    "cnn": cnn,
    "darts": darts,
    "mlp": mlp,
    "nasbench201": nasbench201,
    "nasbenchgraph": nasbenchgraph,
    "nasnet": nasnet,
    "resnet": resnet,
    "transformer": transformer,
}


def build_model(source: ModelSource, data: DataSet) -> nn.Module:
    """The model that a manifest names, with initial weights from torch's global random state.

    Raises:
        InvalidJob: it isn't there, doesn't take these arguments, or can't be trained elastically.
    """
    if source.name in BUILT_IN:
        model = call("model", BUILT_IN[source.name], source.args, shape=data.shape, classes=data.classes)
    else:
        made = call("model", find("model", source.name), source.args)
        if not isinstance(made, nn.Module):
            raise InvalidJob(f"model.name: {source.name} must return a torch.nn.Module, not {type(made).__name__}")
        model = made
    check_model(model)
    return model
