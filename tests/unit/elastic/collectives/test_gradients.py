"""Gradients of several members, summed in buckets: what one of them alone would compute of the whole batch."""

import copy
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from adaptrain.elastic.collectives.gradients import Gradients, Said
from adaptrain.elastic.collectives.process_group import ElasticProcessGroup, ProcessGroupBroken
from adaptrain.elastic.membership.client import CoordinatorClient
from adaptrain.elastic.membership.socket_abort import SocketAbort
from torch import nn
from torch.distributed import DistStoreError
from torch.utils.checkpoint import checkpoint

from tests.unit.elastic.collectives.test_group import control, meet, rendezvous

ALONE = ElasticProcessGroup(
    cast(CoordinatorClient, SimpleNamespace(must_leave=False, should_leave=False)), SocketAbort(), 1, 0, 1, None
)


def together(size: int, act: Callable[[ElasticProcessGroup], Any]) -> list[Any]:
    """What each of ``size`` members returns, which are threads of this process.

    gloo's members sometimes miss each other in one process, and their store times out: they meet again.
    """
    for _ in range(2):
        with suppress(DistStoreError, ProcessGroupBroken):
            return _together(size, act)
    return _together(size, act)


def _together(size: int, act: Callable[[ElasticProcessGroup], Any]) -> list[Any]:
    store = rendezvous()

    def member(rank: int) -> Any:
        return act(meet(control(), rank, store.port, size))

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(member, range(size)))


class Model(nn.Module):
    """Two types of numbers, and a parameter that has no part in the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.unused = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.layers = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4)).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(self.first(x).double()).square().sum()  # type: ignore[no-any-return]


def gradients_of(model: nn.Module, bucket_bytes: int) -> Gradients:
    return Gradients(dict(model.named_parameters()), bucket_bytes)


@pytest.mark.parametrize("bucket_bytes", [48, 100, 1000, 1 << 20])
def test_members_sum_what_one_computes(bucket_bytes: int) -> None:
    torch.manual_seed(1)
    alone, x = Model(), torch.randn(9, 6)
    parts = [[x[:2], x[2:5]], [x[5:]], []]  # in two micro-batches, at once, and nothing

    def act(group: ElasticProcessGroup) -> tuple[list[torch.Tensor], float, int]:
        model = copy.deepcopy(alone)
        gradients = gradients_of(model, bucket_bytes)
        for turn in range(3):
            gradients.zero()
            mine = parts[(group.rank + turn) % 3]
            for part in mine:
                gradients.add(model(part), group if part is mine[-1] else None)
            gradients.sum(group, Said(vote=1.0))
        return [p.grad.clone() for p in model.parameters() if p.grad is not None], gradients.loss, gradients.said.vote

    answers = together(3, act)
    loss = alone(x)
    loss.backward()
    alone.unused.grad = torch.zeros_like(alone.unused)
    expected = [p.grad for p in alone.parameters()]
    for found, total, votes in answers:
        for f, e in zip(found, expected, strict=True):
            torch.testing.assert_close(f, e)
        assert total == pytest.approx(loss.item(), rel=1e-5)
        assert votes == 3
    assert all(torch.equal(a, b) for found, *_ in answers for a, b in zip(found, answers[0][0], strict=True))


def test_what_is_complete_is_sent_while_backward_runs() -> None:
    both = threading.Barrier(2)

    def act(group: ElasticProcessGroup) -> bool:
        last = nn.Linear(8, 8).double()
        model = nn.Sequential(nn.Linear(8, 8).double(), last)
        gradients = gradients_of(model, 8 * 8 * 8)
        gradients.zero()
        gradients.add(model(torch.ones(1, 8, dtype=torch.float64)).sum(), group)
        both.wait()
        until = time.monotonic() + 60
        assert last.bias.grad is not None
        while not bool((last.bias.grad == 2).all()) and time.monotonic() < until:
            time.sleep(0.01)
        early = bool((last.bias.grad == 2).all())
        gradients.sum(group)
        return early

    assert together(2, act) == [True, True]


def test_a_gradient_that_changes_after_it_was_sent_is_an_error() -> None:
    def act(group: ElasticProcessGroup) -> str:
        shared = nn.Linear(4, 4).double()
        gradients = gradients_of(shared, 8)
        gradients.zero()
        x = torch.ones(1, 4, dtype=torch.float64, requires_grad=True)
        for _ in range(2):
            x = checkpoint(shared, x, use_reentrant=True)
        with pytest.raises(RuntimeError) as error:
            gradients.add(x.sum(), group)
        gradients.sum(group)
        return str(error.value)

    said = together(2, act)
    assert all("got a second gradient in one backward pass" in message for message in said), said


@pytest.mark.parametrize(("most", "length"), [(10.0, 5.0), (1.0, 1.0)])
def test_gradients_are_clipped_by_their_norm_together(most: float, length: float) -> None:
    model = nn.Linear(1, 1).double()
    gradients = gradients_of(model, 8)
    gradients.zero()
    gradients.add((3 * model.weight + 4 * model.bias).sum())
    gradients.sum(ALONE)
    gradients.clip(most)
    assert float(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()) == length


@pytest.mark.parametrize(
    ("factor", "says"),
    [
        (1.0, None),
        (1e200, None),
        (float("inf"), "the loss became inf"),
        (float("nan"), "the loss became nan"),
    ],
)
def test_a_loss_that_is_no_number_is_told(factor: float, says: str | None) -> None:
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(model.weight)
    gradients = gradients_of(model, 8)
    gradients.zero()
    gradients.add(model.weight.sum() * factor)
    gradients.sum(ALONE)
    assert gradients.not_finite() == says


def test_a_gradient_that_is_no_number_is_told_by_name() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    gradients = gradients_of(model, 8)
    gradients.zero()
    gradients.add((model[1].bias * 0).sqrt().sum() + model[0].bias.sum())
    gradients.sum(ALONE)
    assert gradients.loss == model[0].bias.item()
    assert gradients.not_finite() == "the gradient of 1.bias became nan"


def test_gradients_that_somebody_replaced_are_summed_all_the_same() -> None:
    model = nn.Linear(2, 1).double()
    gradients = gradients_of(model, 1000)
    model.zero_grad()
    gradients.zero()
    gradients.add(model(torch.ones(1, 2, dtype=torch.float64)).sum())
    gradients.sum(ALONE)
    gradients.clip(1.0)
    assert model.weight.grad is not None
    assert model.weight.grad.tolist() == [[pytest.approx(3**-0.5), pytest.approx(3**-0.5)]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_parts_count_by_their_weight(dtype: torch.dtype) -> None:
    """Means over 300, 1 and no terms make the mean over 301, also where numbers of 8 bits can't count them."""
    weights, losses = [300.0, 1.0, 0.0], [2.0, 4.0, 8.0]

    def act(group: ElasticProcessGroup) -> tuple[float, float, float]:
        model = nn.Linear(1, 1, bias=False).to(dtype)
        nn.init.ones_(model.weight)
        gradients = gradients_of(model, 1000)
        gradients.zero()
        weight = weights[group.rank]
        gradients.add(model.weight.sum() * losses[group.rank] * weight / 3, group, weight)
        gradients.sum(group)
        gradients.weigh(3)
        assert model.weight.grad is not None
        return gradients.loss, gradients._norm, float(model.weight.grad)

    expected = (300 * 2 + 4) / 301
    for found in together(3, act):
        assert found == (pytest.approx(expected, rel=1e-2 if dtype == torch.bfloat16 else 1e-12),) * 3


def test_a_mean_over_nothing_is_no_number() -> None:
    model = nn.Linear(1, 1)
    gradients = gradients_of(model, 1000)
    gradients.zero()
    gradients.sum(ALONE)
    gradients.weigh(3)
    assert gradients.not_finite() == "the loss became nan"
