"""What a script's old loop did itself, and must not do any more: an optimizer that steps beside elastic.step."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from adaptrain.elastic.script.outside import Outside
from adaptrain.elastic.state.optimizers import nested
from adaptrain.elastic.state.replicated import ReplicatedState
from adaptrain.errors import InvalidJob


class Guard:
    """Refuses steps that are not ours, of any optimizer that has a parameter of the model, until it is closed."""

    def __init__(self, state: ReplicatedState, outside: Outside) -> None:
        self._outside = outside
        self._known = {id(p) for p in state.model.parameters()}
        self._own = nested(state.optimizer)
        self._counts = self._groups()
        self._ours = False
        self._hook = register_optimizer_step_pre_hook(self._check)

    @contextmanager
    def ours(self) -> Iterator[None]:
        """Around our own step.

        Raises:
            InvalidJob: the optimizer has other parameters than at the beginning.
        """
        if self._groups() != self._counts:
            raise InvalidJob(
                "the optimizer has other parameters than when Elastic was made: give it all that are ever trained at"
                " the beginning, frozen (requires_grad_(False)) until they are, instead of add_param_group"
            )
        self._ours = True
        try:
            yield
        finally:
            self._ours = False

    def close(self) -> None:
        self._hook.remove()

    def _groups(self) -> list[list[int]]:
        return [[len(group["params"]) for group in one.param_groups] for one in self._own]

    def _check(self, optimizer: Optimizer, *_: Any) -> None:
        if self._ours:
            return
        if any(id(p) in self._known for group in optimizer.param_groups for p in group["params"]):
            if optimizer in self._own:
                remedy = "elastic.step(loss) takes the optimizer's step: remove optimizer.step() from the loop"
            else:
                remedy = "give Elastic one optimizer, with a parameter group for each part of the model"
            raise InvalidJob(
                f"{type(optimizer).__name__} stepped beside elastic.step(loss), so that workers would differ: {remedy}"
            )
        self._outside.check(optimizer)
