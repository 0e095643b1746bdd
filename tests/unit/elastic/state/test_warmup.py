"""A first pass before a worker joins: it leaves no trace, bit by bit, and fails as the first step would."""

import random
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from adaptrain.data.dataset import DataSet, Split
from adaptrain.elastic.collectives.process_group import ElasticProcessGroup
from adaptrain.elastic.membership.client import CoordinatorClient
from adaptrain.elastic.membership.socket_abort import SocketAbort
from adaptrain.elastic.replica.base import Replica
from adaptrain.elastic.state.sample_log import SampleLog
from adaptrain.errors import InvalidJob
from adaptrain.observability.metrics import WorkerMetrics
from adaptrain.phases.sequence import PhaseSequence
from torch import nn
from torch.nn.utils import parametrizations

from tests.e2e.local_jobs import job

SIDE = 8
forwards: list[tuple[int, ...]] = []
"""Shapes of what went through it in training mode."""


class Changing(nn.Module):
    """Everything that a forward pass can change: statistics, power iterations, buffers, parameters, attributes."""

    table: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("table", torch.zeros(1), persistent=False)
        self.embedding = nn.Embedding(32, 16, max_norm=0.5)
        self.layers = nn.Sequential(
            nn.Linear(16, 24), nn.BatchNorm1d(24), nn.Dropout(0.3), nn.ReLU(),
            parametrizations.spectral_norm(nn.Linear(24, 10)),
        )  # fmt: skip
        self.frozen = nn.BatchNorm1d(16).eval()
        self.count, self.seen = 0, torch.zeros(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            forwards.append(tuple(x.shape))
            self.count += 1
            with torch.no_grad():
                self.seen += 1
                self.layers[0].bias.data.clamp_(-0.1, 0.1)
            self.table = torch.arange(self.count + 1.0)  # grows
            noise = random.random() + np.random.random() + torch.rand(1).item()
            assert noise >= 0
        hidden = self.embedding((x.flatten(1).abs() * 7).long() % 32).mean(1)
        return self.layers(self.frozen(hidden))  # type: ignore[no-any-return]


class Alone:
    """One worker's task."""

    def __init__(self, model: type[nn.Module] = Changing, samples: int = 40, **phase: Any) -> None:
        torch.manual_seed(3)
        split = Split((torch.randn(samples, 1, SIDE, SIDE, dtype=torch.float64), torch.arange(samples) % 10))
        spec = job(phase={"batch": {"size": 16}, "augmentation": None} | phase).spec
        assert spec.phases is not None
        told: Any = SimpleNamespace(must_leave=False, should_leave=False, doing=lambda *_: torch.no_grad())
        self.task = PhaseSequence(
            spec.phases, lambda: model().double(), DataSet(split, split, None, (1, SIDE, SIDE), 10), 5,
            WorkerMetrics("n", "j"), SampleLog(None, ""),
        )  # fmt: skip
        self.group = ElasticProcessGroup(cast(CoordinatorClient, told), SocketAbort(), (1 << 32) + 1, 0, 1, None)
        forwards.clear()

    def warm_up(self, workers: int = 1) -> None:
        self.task.warm_up(Replica().alone(), workers)

    def everything(self) -> dict[str, Any]:
        """All that there is, as bits."""
        state, model = self.task.state, self.task.state.model
        tensors = {**state.tensors(), **{f"buffer {n}": t for n, t in model.named_buffers()}, "seen": model.seen}
        tensors |= {f"gradient {n}": p.grad for n, p in model.named_parameters()}
        found: dict[str, Any] = {name: (t.dtype, t.numpy().tobytes()) for name, t in tensors.items()}
        numpys = np.random.get_state()
        generators = torch.get_rng_state().tolist(), random.getstate(), numpys[1].tolist(), numpys[2]
        modes = [module.training for module in model.modules()]
        return found | {"generators": generators, "modes": modes, "count": model.count, "counters": state.counters}

    def steps(self, count: int) -> dict[str, Any]:
        for _ in range(count):
            self.task.unit(self.group)
        return self.everything()


@pytest.mark.parametrize("phase", [{}, {"optimizer": {"name": "sgd", "learningRate": 0.1}}])
def test_a_first_pass_leaves_no_trace(phase: dict[str, Any]) -> None:
    alone = Alone(**phase)
    before = alone.everything()
    alone.warm_up()
    assert forwards, "there was a pass"
    after = alone.everything()
    assert [name for name in before if before[name] != after[name]] == []
    assert before.keys() == after.keys()


def test_the_trajectory_is_the_same_bits_with_and_without_it() -> None:
    cold, warm = Alone(), Alone()
    warm.warm_up(2)
    ended, other = cold.steps(7), warm.steps(7)
    assert [name for name in ended if name != "generators" and ended[name] != other[name]] == []


@pytest.mark.parametrize(("workers", "each"), [(1, 16), (3, 5), (16, 2), (100, 2)])
def test_it_takes_as_many_samples_as_a_step_will_bring(workers: int, each: int) -> None:
    alone = Alone()
    alone.warm_up(workers)
    assert forwards == [(each, 1, SIDE, SIDE)]


def test_where_a_compiler_is_in_use_neither_steps_nor_evaluations_wait_for_it() -> None:
    compiled: list[bool] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        compiled.append(torch.is_grad_enabled())
        return graph.forward

    class Compiled(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Flatten(), nn.Linear(SIDE * SIDE, 10), nn.Dropout(0.5))
            self.compile(backend=backend)

    alone = Alone(Compiled, samples=32)
    weights = {n: t.clone() for n, t in alone.task.state.tensors().items()}
    alone.warm_up()
    assert compiled == [True, False]
    assert all(torch.equal(t, weights[n]) for n, t in alone.task.state.tensors().items())
    assert all(module.training for module in alone.task.state.model.modules())
    for _ in range(3):
        alone.task.unit(alone.group)
    assert alone.task.state.counters.evaluated_step == 2
    assert compiled == [True, False], "nothing is left to compile"


def test_of_a_data_set_that_is_smaller_than_a_batch_it_takes_no_more_than_there_are() -> None:
    alone = Alone(samples=5)
    alone.warm_up()
    assert forwards == [(5, 1, SIDE, SIDE)]


class Raising(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(SIDE * SIDE, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


class Detached(nn.Sequential):
    """Its backward pass fails."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(SIDE * SIDE, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).detach()  # type: ignore[no-any-return]


class Averaging(nn.Sequential):
    """It keeps in a buffer what this worker alone has seen."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(SIDE * SIDE, 10))
        self.register_buffer("mean", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.mean += 1
        return super().forward(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("model", [Raising, Detached, Averaging])
def test_what_fails_in_the_first_step_fails_before_with_the_same_words(model: type[nn.Module]) -> None:
    said = []
    for attempt in (lambda one: one.warm_up(), lambda one: one.steps(1)):
        with pytest.raises((RuntimeError, InvalidJob)) as caught:
            attempt(Alone(model))
        said.append((type(caught.value), str(caught.value)))
    assert said[0] == said[1]


def test_a_batch_normalization_of_micro_batches_is_refused_before_as_well() -> None:
    with pytest.raises(InvalidJob, match="statistics of the whole global batch"):
        Alone(batch={"size": 16, "microSize": 4}).warm_up()


class Infinite(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(SIDE * SIDE, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * torch.inf  # type: ignore[no-any-return]


def test_a_loss_that_is_no_number_is_for_the_steps_to_judge() -> None:
    alone = Alone(Infinite)
    alone.warm_up()
    assert all(p.grad is not None and not p.grad.any() for p in alone.task.state.model.parameters())


def test_a_scripted_model_is_tried_as_well() -> None:
    class Scripted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 10))
            layers.register_buffer("kept", torch.ones(2))
            self.inner = torch.jit.script(layers)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)  # type: ignore[no-any-return]

    alone = Alone(Scripted)
    weights = {n: t.clone() for n, t in alone.task.state.tensors().items()}
    alone.warm_up()
    assert all(torch.equal(t, weights[n]) for n, t in alone.task.state.tensors().items())
