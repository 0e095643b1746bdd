"""Optimizers that a manifest names."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from adaptrain_api.phases.phase import Optimizer


def build_optimizer(spec: Optimizer, model: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a phase, of all of a model's parameters."""
    given: dict[str, Any] = {"lr": spec.learning_rate}
    if spec.weight_decay is not None:
        given["weight_decay"] = spec.weight_decay
    if spec.name == "adamw":
        return without_compiler(torch.optim.AdamW)(model.parameters(), **given)
    return without_compiler(torch.optim.SGD)(model.parameters(), momentum=spec.momentum or 0.0, **given)


@functools.cache
def without_compiler(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """The same optimizer, whose methods do not import ``torch._dynamo``.

    torch's decorators import it at an optimizer's construction and first step, only to keep the compiler out. That
    takes as long as the rest of torch, in every worker that joins; nothing here compiles an optimizer.
    """
    methods = {name: _undecorated(getattr(kind, name)) for name in ("add_param_group", "zero_grad")}
    return type(kind.__name__, (kind,), {**methods, "step": torch.no_grad()(_undecorated(kind.step))})


def _undecorated(method: Any) -> Any:
    while hasattr(method, "__wrapped__"):
        method = method.__wrapped__
    return method
