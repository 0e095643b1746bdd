"""Whether an optimizer can be shared by workers that come and go: tried, before training, on small copies.

A copy of the optimizer takes some steps over parameters of a few numbers each. Other copies join it on the way, as a
worker would: with what is sent of its state. All must end with the same numbers. The user's optimizer, model and
random generators stay as they are.
"""

import copy
import json
import random
import sys
from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from adaptrain.data.rng import GlobalRandom
from adaptrain.elastic.state.optimizers import OptimizerState, Unsupported, nested
from adaptrain.errors import InvalidJob

STEPS = 24
"""Long enough for what happens at every so many-th step only."""
JOINS = (1, 7, 16)
"""After so many of them another copy joins."""
SIDE = 3
"""Of a small parameter, in each dimension."""

REMEDY = "use another one, such as torch.optim.AdamW or SGD"


def check_optimizer(optimizer: Any, model: torch.nn.Module) -> None:
    """
    Raises:
        InvalidJob: the optimizer's steps can't be taken alike by several workers, or it isn't one over ``model``.
    """
    name = type(optimizer).__name__
    if not isinstance(optimizer, Optimizer):
        several = isinstance(optimizer, list | tuple | dict)
        raise InvalidJob(
            f"optimizer is a {name}, and Elastic takes one torch.optim.Optimizer"
            + (": give one that has a parameter group for each of them" if several else "")
        )
    known = {id(p) for p in model.parameters()}
    given = [p for one in nested(optimizer) for group in one.param_groups for p in group["params"]]
    if any(id(p) not in known for p in given):
        raise InvalidJob(
            f"optimizer: {name} has a parameter that the model has not: build it of model.parameters(), after the model"
            " has its last form"
        )
    if not any(p.requires_grad for p in given):
        raise InvalidJob(f"optimizer: none of the parameters of {name} is trained: let some of them require gradients")
    with GlobalRandom(), _eager():
        before = _numbers()
        try:
            same = _rehearse(optimizer)
        except Unsupported as error:
            raise InvalidJob(f"optimizer: {name} can't be sent to a worker that joins ({error}): {REMEDY}") from error
        except Exception as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InvalidJob(
                f"optimizer: {name} can't take a step with gradients that workers summed ({said}): {REMEDY}"
            ) from error
        drew = _numbers() != before
    if drew:
        raise InvalidJob(
            f"optimizer: {name} draws random numbers, which are others on each worker: make it deterministic, as"
            f" timm's Kron is with deterministic=True, or {REMEDY}"
        )
    if not same:
        raise InvalidJob(
            f"optimizer: {name} keeps a part of its state where it can't be sent to a worker that joins: keep it in"
            f" optimizer.state or in the parameter groups, or {REMEDY}"
        )


def _numbers() -> tuple[Any, ...]:
    """The process's random generators."""
    _, numpys, place, *_ = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), list(numpys), place


def _eager() -> AbstractContextManager[object]:
    """Compiling a step takes minutes, and would be done for the small copies alone."""
    # Who compiles has imported it, which takes seconds.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _rehearse(optimizer: Optimizer) -> bool:
    """Whether copies that join on the way end with the numbers of the one that they join."""
    one = _Copy(optimizer)
    others: list[_Copy] = []
    for step in range(STEPS):
        if step in JOINS:
            others.append(_Copy(optimizer))
            others[-1].join(one)
        for each in (one, *others):
            each.step(step)
    return all(each.says() == one.says() for each in others)


class _Copy:
    """A small copy of an optimizer: of each parameter group, one parameter of each number of dimensions and type."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._memo: dict[int, Any] = {}
        self._small: dict[int, torch.nn.Parameter] = {}
        for one in nested(optimizer):
            for group in one.param_groups:
                self._shrink(group["params"])
        self._optimizer = self._of(optimizer)
        for group in self._optimizer.param_groups:
            if "param_names" in group:
                del group["param_names"]
        self._parameters = list(self._small.values())
        self._state = OptimizerState(self._optimizer, self._parameters)

    def step(self, number: int) -> None:
        for place, p in enumerate(self._parameters):
            wave = torch.arange(p.numel(), dtype=torch.float64).add_(1 + place).mul_(0.7 + number).cos_()
            p.grad = wave.reshape(p.shape).to(p)
        self._optimizer.step()

    def join(self, other: "_Copy") -> None:
        said = json.loads(json.dumps(other._state.state_dict()))
        received = self._state.room(said)
        for name, t in other._state.tensors().items():
            received[name].copy_(t)
        self._state.load(said, received)
        with torch.no_grad():
            for mine, theirs in zip(self._parameters, other._parameters, strict=True):
                mine.copy_(theirs)

    def says(self) -> tuple[Any, ...]:
        """Its numbers, as text: what is no number is the same as itself."""
        tensors = [*self._parameters, *self._state.tensors().values()]
        return json.dumps(self._state.state_dict()), [str(t.tolist()) for t in tensors]

    def _shrink(self, parameters: list[torch.nn.Parameter]) -> None:
        kinds = set()
        for p in parameters:
            kind = p.ndim, p.dtype, p.device
            if p.requires_grad and kind not in kinds and id(p) not in self._small:
                kinds.add(kind)
                small = torch.full([min(side, SIDE) for side in p.shape], 0.5, dtype=p.dtype, device=p.device)
                self._small[id(p)] = self._memo[id(p)] = torch.nn.Parameter(small)

    def _of(self, optimizer: Optimizer) -> Optimizer:
        """Not by ``deepcopy``: an optimizer's ``__getstate__`` leaves out the attributes of a subclass."""
        made: Optimizer = object.__new__(type(optimizer))
        self._memo[id(optimizer)] = made
        for inner in nested(optimizer)[1:]:
            if id(inner) not in self._memo:
                self._of(inner)
        for key, value in vars(optimizer).items():
            if key == "state":
                state: Any = defaultdict(dict)
                for p, kept in value.items():
                    if id(p) in self._small:
                        state[self._small[id(p)]] = _cropped(kept, p, self._small[id(p)])
                    elif not isinstance(p, torch.Tensor):
                        state[p] = copy.deepcopy(kept, self._memo)
                made.state = state
            elif key == "param_groups":
                made.param_groups = [self._group(group) for group in value]
            elif key.startswith("_optimizer_"):  # hooks, which are the user's
                setattr(made, key, type(value)())
            elif not callable(getattr(type(optimizer), key, None)):  # a scheduler puts its own step over the class's
                setattr(made, key, copy.deepcopy(value, self._memo))
        return made

    def _group(self, group: dict[str, Any]) -> dict[str, Any]:
        """One copy of each: a wrapper and what it wraps share theirs."""
        if id(group) not in self._memo:
            rest = {key: copy.deepcopy(value, self._memo) for key, value in group.items() if key != "params"}
            kept = [self._small[id(p)] for p in group["params"] if id(p) in self._small]
            self._memo[id(group)] = {"params": kept, **rest}
        made: dict[str, Any] = self._memo[id(group)]
        return made


def _cropped(value: Any, like: torch.Tensor, small: torch.Tensor) -> Any:
    """A state that is there from the beginning, of a small parameter."""
    if isinstance(value, torch.Tensor):
        if value.shape == like.shape:
            value = value[tuple(slice(side) for side in small.shape)]
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _cropped(one, like, small) for key, one in value.items()}
    return copy.deepcopy(value)
