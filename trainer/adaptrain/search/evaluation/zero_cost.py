"""Zero-cost proxies: what a model is worth, guessed before it is trained. More is better."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from adaptrain.config.arguments import one_of
from adaptrain.models.cost import count_flops, count_parameters

NORMS = (nn.GroupNorm, nn.LayerNorm)


def score(name: str, model: nn.Module, batch: torch.Tensor) -> float:
    """
    Args:
        name: naswot, synflow, parameters or flops.
        batch: inputs [n, …]; naswot is of all of them, the others of their shape.

    Raises:
        ValueError: there is no such proxy, or the model has nothing that it looks at.
    """
    return PROXIES[one_of("proxy", name, PROXIES)](model, batch)


def naswot(model: nn.Module, batch: torch.Tensor) -> float:
    """log |K|, where K counts the ReLUs that two inputs switch alike (Mellor et al., 2021, equation 2); −∞ where two
    inputs switch all alike."""
    with _Switches() as switches, torch.no_grad():
        model(batch)
    if not switches.seen:
        raise ValueError("naswot needs a model with ReLUs, and this one has none: use another proxy")
    on = torch.cat([s.reshape(len(batch), -1) for s in switches.seen], 1).double()
    kernel = on @ on.T + (1 - on) @ (1 - on).T
    sign, log = torch.linalg.slogdet(kernel)
    return float(log) if float(sign) > 0 else -math.inf


def synflow(model: nn.Module, batch: torch.Tensor) -> float:
    """Logarithm of the sum of θ · ∂R/∂θ over the weights, where R is the sum of the outputs for an input of ones and
    weights |θ| (Tanaka et al., 2020, equation 2). Without normalization, which would make R the same for all."""
    plain = _without_norms(copy.deepcopy(model).double())
    with torch.no_grad():
        for p in plain.parameters():
            p.abs_()
    flow = plain(torch.ones(1, *batch.shape[1:], dtype=torch.float64, device=batch.device)).sum()
    trained = [p for p in plain.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(flow, trained, materialize_grads=True, allow_unused=True)
    total = sum(float((p.detach() * slope).sum()) for p, slope in zip(trained, slopes, strict=True))
    return math.log(total) if total > 0 else -math.inf


PROXIES: dict[str, Callable[[nn.Module, torch.Tensor], float]] = {
    "naswot": naswot,
    "synflow": synflow,
    "parameters": lambda model, batch: float(count_parameters(model)),
    "flops": lambda model, batch: float(count_flops(model, batch[0])),
}


class _Switches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Which ReLUs are on, in whatever way they are called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.relu.default, torch.ops.aten.relu_.default):
            self.seen.append(out > 0)
        return out


def _without_norms(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        if isinstance(child, NORMS):
            setattr(module, name, nn.Identity())
        else:
            _without_norms(child)
    return module
