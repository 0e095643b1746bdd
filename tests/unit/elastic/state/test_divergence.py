"""Members that hold different states after a step are found out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from adaptrain.elastic.collectives.process_group import ElasticProcessGroup
from adaptrain.elastic.state.divergence import compare
from adaptrain.errors import InvalidJob

KINDS = (torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool)


def tensors(spoil: str = "") -> dict[str, torch.Tensor]:
    made = {f"model.{kind}": torch.arange(7).to(kind) for kind in KINDS}
    made |= {"optimizer.0.step": torch.tensor(3.0), "model.empty": torch.empty(0), "model.turned": torch.eye(3).T}
    if spoil:
        with torch.no_grad():
            flat = made[spoil].view(-1)
            flat[-1] = flat[-1] == 0
    return made


def both(pair: Any, other: dict[str, torch.Tensor]) -> list[Callable[[], None]]:
    def one(group: ElasticProcessGroup) -> None:
        compare(group, tensors(), 64)

    return [f.result for f in pair(one, lambda group, _: compare(group, other, 64))]


def test_equal_states_pass(pair: Any) -> None:
    for result in both(pair, tensors()):
        result()


@pytest.mark.parametrize("name", ["model.torch.float64", "model.torch.bool", "optimizer.0.step"])
def test_a_tensor_that_differs_is_named_on_all_members(pair: Any, name: str) -> None:
    for result in both(pair, tensors(spoil=name)):
        with pytest.raises(InvalidJob, match=rf"after step 64 the workers hold different values of {name} \(1 of 8"):
            result()
