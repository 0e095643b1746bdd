"""Models: ours by name, the user's by ``module:callable``."""

from collections.abc import Callable

from adaptrain_api.components import ModelSource
from torch import nn

from adaptrain.config.imports import call_with_args, import_callable
from adaptrain.data.dataset import DataSet
from adaptrain.elastic.state.replicated import check_model
from adaptrain.errors import InvalidJob
from adaptrain.models.cells.darts import darts
from adaptrain.models.cells.graph import nasbenchgraph
from adaptrain.models.cells.nasbench201 import nasbench201
from adaptrain.models.cells.nasnet import nasnet
from adaptrain.models.sequence.mlp import mlp
from adaptrain.models.sequence.transformer import transformer
from adaptrain.models.vision.cnn import cnn
from adaptrain.models.vision.resnet import resnet

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
        model = call_with_args("model", BUILT_IN[source.name], source.args, shape=data.shape, classes=data.classes)
    else:
        made = call_with_args("model", import_callable("model", source.name), source.args)
        if not isinstance(made, nn.Module):
            raise InvalidJob(f"model.name: {source.name} must return a torch.nn.Module, not {type(made).__name__}")
        model = made
    check_model(model)
    return model
