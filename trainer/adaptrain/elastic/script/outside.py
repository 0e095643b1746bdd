"""What a script trains beside the state that workers share: averaged weights, a second network, another optimizer.

A worker that joins would not get it, and a discarded step would not spare it. It is looked for among the process's
live objects, before the first step and after it.
"""

import gc
from collections.abc import Iterator
from typing import TypeVar, cast

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from adaptrain.errors import InvalidJob

T = TypeVar("T")

REMEDY = (
    "a worker that joins would not get it: let it be part of the model that Elastic gets, as in"
    " nn.ModuleDict({'net': net, 'other': other}), and change it only after a step that was applied"
)


class Outside:
    """Modules and optimizers that are not part of a model and of its optimizer."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._model = model
        self._optimizer = optimizer
        self._versions: dict[str, list[tuple[torch.Tensor, int]]] | None = {}
        """Of each module outside its tensors, and how often each had been changed; None: compared already."""
        self._looked = False

    def look(self) -> None:
        """Before each step: look for them before the first one, and whether they changed before the second one.

        Raises:
            InvalidJob: something is trained that is not shared.
        """
        if self._versions is None:
            return
        if self._looked:
            for name, tensors in self._versions.items():
                if any(tensor._version != version for tensor, version in tensors):
                    raise InvalidJob(f"{name} changes with each step and is no part of the model: {REMEDY}")
            self._versions = None
            return
        self._looked = True
        gc.collect()  # what is dead is nobody's
        self._check_optimizers()
        own = set(self._model.modules())
        shared = {id(t) for t in [*self._model.parameters(), *self._model.buffers()]}
        for module in _alive(nn.Module):
            if module in own or isinstance(module, torch.jit.ScriptModule):
                continue
            if _averages(module) and _shapes(cast(nn.Module, module.module)) in map(_shapes, own):
                raise InvalidJob(f"{type(module).__name__} averages weights, and is no part of the model: {REMEDY}")
            own_tensors: list[torch.Tensor] = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            noted = [(t, t._version) for t in own_tensors if id(t) not in shared and not t.is_inference()]
            self._versions.setdefault(type(module).__name__, []).extend(noted)

    def check(self, optimizer: Optimizer) -> None:
        """Of an optimizer that steps in the loop's body, before the first step is applied.

        Raises:
            InvalidJob: it trains a module that there was before, and that is no part of the model.
        """
        theirs = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, tensors in (self._versions or {}).items():
            if any(id(tensor) in theirs for tensor, _ in tensors):
                raise InvalidJob(
                    f"{type(optimizer).__name__} trains {name}, which is no part of the model: {REMEDY}; give Elastic"
                    " one optimizer, with a parameter group for each part"
                )

    def _check_optimizers(self) -> None:
        """
        Raises:
            InvalidJob: another optimizer trains a part of the model.
        """
        ours = {p for group in self._optimizer.param_groups for p in group["params"]}
        theirs = set(self._model.parameters()) - ours
        for other in _alive(Optimizer):
            if other is not self._optimizer and any(p in theirs for g in other.param_groups for p in g["params"]):
                raise InvalidJob(
                    f"{type(other).__name__} trains a part of the model that the optimizer of Elastic"
                    f" ({type(self._optimizer).__name__}) does not: give it one optimizer, with a parameter group for"
                    " each part"
                )


def _alive(kind: type[T]) -> Iterator[T]:
    for found in gc.get_objects():
        if issubclass(type(found), kind):
            yield found


def _averages(module: nn.Module) -> bool:
    """Whether it is torch's average of another module's weights, or timm's."""
    return isinstance(module, AveragedModel) or type(module).__name__.startswith("ModelEma")


def _shapes(module: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, t.shape) for name, t in module.state_dict().items()]
