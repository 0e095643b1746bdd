"""Batch normalization over several members: what one of them alone would compute of the whole batch."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from adaptrain.elastic.collectives.batch_norm import BatchStatistics, check_batch_norm
from adaptrain.elastic.collectives.process_group import ElasticProcessGroup, ProcessGroupBroken
from adaptrain.errors import InvalidJob
from timm.layers import BatchNormAct2d
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.unit.elastic.collectives.test_gradients import ALONE, together

SHARES = [slice(0, 2), slice(2, 9), slice(9, 9)]


class Functional(nn.Module):
    """No module of torch's, statistics under names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("middle", torch.zeros(3))
        self.register_buffer("spread", torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert isinstance(self.middle, torch.Tensor)
        assert isinstance(self.spread, torch.Tensor)
        return F.batch_norm(x, self.middle, self.spread, training=self.training, momentum=0.3)


class Recomputed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)  # type: ignore[no-any-return]


LAYERS: dict[str, tuple[Callable[[], nn.Module], list[int]]] = {
    "1d": (lambda: nn.BatchNorm1d(3), [3]),
    "1d of sequences": (lambda: nn.BatchNorm1d(3), [3, 4]),
    "2d": (lambda: nn.BatchNorm2d(3), [3, 4, 2]),
    "3d": (lambda: nn.BatchNorm3d(3), [3, 2, 2, 2]),
    "no weights": (lambda: nn.BatchNorm2d(3, affine=False), [3, 4, 2]),
    "no running statistics": (lambda: nn.BatchNorm2d(3, track_running_stats=False), [3, 4, 2]),
    "cumulative": (lambda: nn.BatchNorm2d(3, momentum=None), [3, 4, 2]),
    "synchronized": (lambda: nn.SyncBatchNorm(3), [3, 4, 2]),
    "timm": (lambda: BatchNormAct2d(3), [3, 4, 2]),
    "functional": (Functional, [3, 4, 2]),
    "twice": (lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.Tanh(), nn.BatchNorm1d(3)), [3]),
    "recomputed": (Recomputed, [3]),
}


def step(
    model: nn.Module,
    statistics: BatchStatistics,
    group: ElasticProcessGroup,
    x: torch.Tensor,
    y: torch.Tensor,
    mine: slice,
) -> torch.Tensor:
    """The gradient of a share's inputs; those of the parameters add up in ``grad``."""
    counts = len(x[mine]) > 0
    inputs = (x[mine] if counts else x[:1]).clone().requires_grad_()
    with statistics.step(group, counts=counts, whole=True):
        loss = (model(inputs) * (y[mine] if counts else y[:1])).square().sum()
        (loss * counts / len(x)).backward()
        statistics.check()
        statistics.end(applied=True)
    assert inputs.grad is not None
    return inputs.grad


def trained(model: nn.Module, shape: list[int], dtype: torch.dtype = torch.float64) -> list[list[torch.Tensor]]:
    """After three steps: gradients of all inputs, parameters and buffers; of one member, and of several."""
    torch.manual_seed(3)
    model = nn.Sequential(model, nn.Flatten()).to(dtype)
    batches = [(5 + 3 * torch.randn(9, *shape, dtype=dtype), torch.randn(9, 1, dtype=dtype)) for _ in range(3)]

    def act(group: ElasticProcessGroup) -> tuple[nn.Module, list[torch.Tensor]]:
        own = copy.deepcopy(model)
        statistics = BatchStatistics(own)
        shares = SHARES if group.size > 1 else [slice(0, 9)]
        inputs = [
            step(own, statistics, group, x, y, shares[(group.rank + turn) % len(shares)])
            for turn, (x, y) in enumerate(batches)
        ]
        return own, inputs

    def all_of(members: list[Any]) -> list[torch.Tensor]:
        inputs = []
        for turn in range(3):
            by_share = sorted(range(len(members)), key=lambda rank, turn=turn: (rank + turn) % len(members))
            inputs.append(torch.cat([members[rank][1][turn] for rank in by_share])[:9])
        parameters = [
            sum((p.grad for p in ps if p.grad is not None), torch.zeros(()))
            for ps in zip(*(m.parameters() for m, _ in members), strict=True)
        ]
        for buffers in zip(*(m.buffers() for m, _ in members), strict=True):
            assert all(torch.equal(buffers[0], other) for other in buffers)
        return [*inputs, *parameters, *members[0][0].buffers()]

    return [all_of([act(ALONE)]), all_of(together(3, act))]


@pytest.mark.parametrize("kind", LAYERS)
def test_members_normalize_as_one_would(kind: str) -> None:
    make, shape = LAYERS[kind]
    alone, several = trained(make(), shape)
    for one, other in zip(alone, several, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["1d", "2d", "no weights"])
def test_other_types(kind: str, dtype: torch.dtype) -> None:
    make, shape = LAYERS[kind]
    alone, several = trained(make(), shape, dtype)
    for one, other in zip(alone, several, strict=True):
        rough = 1e-4 if dtype == torch.float32 else 0.15
        torch.testing.assert_close(other, one, rtol=rough, atol=rough)


def test_mixed_precision_keeps_statistics_in_float32() -> None:
    def act(group: ElasticProcessGroup) -> nn.Module:
        model = nn.BatchNorm1d(2)
        statistics = BatchStatistics(model)
        with statistics.step(group, counts=True, whole=True):
            x = torch.tensor([[1000.0 + group.rank, 1.0], [1002.0 + group.rank, 3.0]], dtype=torch.bfloat16)
            model(x).sum().backward()
            statistics.end(applied=True)
        return model

    for model in together(2, act):
        x = torch.tensor([[1000.0, 1.0], [1002, 3.0], [1001.0, 1.0], [1003.0, 3.0]]).bfloat16().float()
        torch.testing.assert_close(model.running_var, 0.9 + 0.1 * x.var(0))


def test_numbers_far_from_zero_lose_nothing() -> None:
    """Sums of squares would leave no digit of this variance."""

    def act(group: ElasticProcessGroup) -> torch.Tensor:
        model = nn.BatchNorm1d(1, momentum=1.0).double()
        statistics = BatchStatistics(model)
        with statistics.step(group, counts=True, whole=True):
            model(1e9 + torch.arange(3.0).double().view(3, 1) + 3 * group.rank)
            statistics.end(applied=True)
        assert model.running_var is not None
        return model.running_var

    for variance in together(2, act):
        assert float(variance) == pytest.approx(3.5, rel=1e-12)


def test_a_step_that_is_not_applied_leaves_the_statistics() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3, momentum=None), Functional()).double()
    statistics = BatchStatistics(model)
    before = copy.deepcopy(model.state_dict())
    with statistics.step(ALONE, counts=True, whole=True):
        model(torch.randn(4, 3).double())
        assert not torch.equal(model.state_dict()["0.running_mean"], before["0.running_mean"])
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_group_that_breaks_is_told_after_backward() -> None:
    """Neither a user's forward pass nor autograd hears of it; all ends with the statistics of before."""

    def act(group: ElasticProcessGroup) -> bool:
        model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3))
        statistics = BatchStatistics(model)
        before = copy.deepcopy(model.state_dict())
        if group.rank == 1:
            group._sockets.abort()
            return True
        with statistics.step(group, counts=True, whole=True):
            model(torch.randn(4, 3)).square().sum().backward()
            with pytest.raises(ProcessGroupBroken):
                statistics.check()
        return all(torch.equal(t, before[name]) for name, t in model.state_dict().items())

    assert together(2, act) == [True, True]


def test_what_is_frozen_exchanges_nothing() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.InstanceNorm1d(3)).eval()
    statistics = BatchStatistics(model)

    def act(group: ElasticProcessGroup) -> bool:
        if group.rank == 0:  # alone: an exchange would wait for ever
            with statistics.step(group, counts=True, whole=True):
                model(torch.randn(2, 3, 4))
                assert not statistics.exchanged
        return True

    assert together(2, act) == [True, True]


def test_what_sees_only_a_part_is_refused_by_name() -> None:
    model = nn.ModuleDict({"norm": nn.BatchNorm1d(3)})
    statistics = BatchStatistics(model)
    with (
        statistics.step(ALONE, counts=True, whole=False),
        pytest.raises(InvalidJob, match=r"norm, a BatchNorm1d, normalizes .* micro-batches can't give"),
    ):
        model["norm"](torch.randn(4, 3))
    with statistics.step(ALONE, counts=True, whole=False):
        model.eval()["norm"](torch.randn(4, 3))


def test_a_compiled_module_is_refused() -> None:
    with pytest.raises(InvalidJob, match="compiled by torch"):
        check_batch_norm(torch.jit.script(nn.BatchNorm1d(3)))


def test_one_sample_in_all_is_refused_as_torch_does() -> None:
    def act(group: ElasticProcessGroup) -> bool:
        model = nn.BatchNorm1d(3)
        statistics = BatchStatistics(model)
        with (
            statistics.step(group, counts=group.rank == 0, whole=True),
            pytest.raises(ValueError, match="Expected more than 1 value per channel"),
        ):
            model(torch.randn(1, 3))
        return True

    assert together(2, act) == [True, True]


def test_a_model_that_torch_compiles() -> None:
    def act(group: ElasticProcessGroup) -> list[torch.Tensor]:
        model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double()
        nn.init.ones_(model[0].weight)
        nn.init.zeros_(model[0].bias)
        compiled = torch.compile(model, backend="eager")
        statistics = BatchStatistics(model)
        with statistics.step(group, counts=True, whole=True):
            x = torch.arange(12.0).view(4, 3).double()
            compiled(x if group.size == 1 else x[2 * group.rank : 2 * group.rank + 2]).square().sum().backward()
            statistics.end(applied=True)
        return [t.clone() for t in model.state_dict().values()]

    expected = act(ALONE)
    for found in together(2, act):
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other, one)


@pytest.mark.parametrize("name", ["resnet10t", "test_efficientnet"])
def test_timms_models_train_unchanged(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=2).double()
    alone, several = trained(model, [3, 16, 16])
    assert [type(m) for m in model.modules()] == [type(m) for m in copy.deepcopy(model).modules()]
    for one, other in zip(alone, several, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9)
