"""A supervised phase whose data spoils a step: what the policies make of it; micro-batches and bfloat16."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from adaptrain.data.digits import digits
from adaptrain.elastic.checkpoint.manager import Checkpoints, Policy
from adaptrain.elastic.collectives.process_group import ElasticProcessGroup
from adaptrain.elastic.membership.client import CoordinatorClient
from adaptrain.elastic.membership.socket_abort import SocketAbort
from adaptrain.elastic.nonfinite import NotFinite
from adaptrain.elastic.state.sample_log import SampleLog
from adaptrain.elastic.storage.directory import Directory
from adaptrain.errors import InvalidJob
from adaptrain.observability.metrics import WorkerMetrics
from adaptrain.phases.sequence import PhaseSequence
from torch import nn

from tests.e2e.local_jobs import job


class Fragile(nn.Module):
    """Spoiled in some of its training passes."""

    def __init__(self, spoiled: set[int], dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).to(dtype)
        self._spoiled = spoiled
        self._passes = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._passes += 1
        return self.layers(x) * (float("nan") if self._passes in self._spoiled else 1.0)  # type: ignore[no-any-return]


class Alone:
    """One member, whose notes are kept."""

    def __init__(self, spoiled: set[int], dtype: torch.dtype = torch.float64, **phase: Any) -> None:
        self.notes: list[str] = []
        self.control = cast(
            CoordinatorClient,
            SimpleNamespace(
                must_leave=False, should_leave=False, connected=True, epoch=(1 << 32) + 1, note=self.notes.append,
                doing=lambda *_: torch.no_grad(),
            ),
        )  # fmt: skip
        spec = job(phase=phase, checkpoint={"volume": {"persistentVolumeClaim": {"claimName": "x"}}}).spec
        assert spec.phases is not None
        metrics, trace = WorkerMetrics("n", "j"), SampleLog(None, "")
        self.task = PhaseSequence(spec.phases, lambda: Fragile(spoiled, dtype), digits(), 0, metrics, trace)
        self.group = ElasticProcessGroup(self.control, SocketAbort(), (1 << 32) + 1, 0, 1, None)

    def steps(self, count: int) -> dict[str, torch.Tensor]:
        """Take so many units; returns the weights."""
        for _ in range(count):
            self.task.unit(self.group)
        return {name: t.clone() for name, t in self.task.state.weights().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_training_fails_with_what_when_and_what_to_do() -> None:
    alone = Alone({3})
    with pytest.raises(NotFinite, match=r"^the loss became nan at step 2: lower phases\[0\].optimizer.learningRate"):
        alone.steps(3)


def test_a_spoiled_step_is_skipped_as_a_whole() -> None:
    alone = Alone({3}, nonFinite="skip")
    before = alone.steps(2)
    assert same(before, alone.steps(1))
    c = alone.task.state.counters
    assert (c.step, c.cursor, c.version, c.skipped) == (2, 3 * 64, 3, 1)
    assert alone.notes == ["the loss became nan at step 2: the step's samples are passed over"]
    alone.steps(1)
    assert (c.step, c.cursor, c.in_a_row) == (3, 4 * 64, 0)


def test_skipping_ends_when_nothing_else_happens() -> None:
    alone = Alone(set(range(2, 50)), nonFinite="skip")
    with pytest.raises(NotFinite, match="at step 1, as 9 times before in a row"):
        alone.steps(20)


def test_rollback_takes_the_weights_of_the_newest_sound_checkpoint(tmp_path: Path) -> None:
    alone = Alone({6, 8}, nonFinite="rollback")
    checkpoints = Checkpoints(Directory(tmp_path), Policy(60, 3), alone.control)
    alone.task.use(checkpoints)
    sound = alone.steps(2)
    checkpoints.save(alone.task.state)
    alone.steps(2)
    good = alone.task.state.capture()
    weight = next(p for p in alone.task.state.model.parameters())
    weight.data[0, 0] = float("inf")
    checkpoints.save(alone.task.state)
    alone.task.state.restore(good)
    alone.steps(1)
    assert same(sound, alone.steps(1))
    c = alone.task.state.counters
    assert (c.step, c.cursor, c.skipped, c.rolled_back_to) == (5, 6 * 64, 1, 2)
    alone.steps(1)
    assert same(sound, alone.steps(1))
    assert c.in_a_row == 2


def test_rollback_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    alone = Alone({1}, nonFinite="rollback")
    alone.task.current.non_finite.checkpoints = Checkpoints(Directory(tmp_path), Policy(60, 3), alone.control)
    with pytest.raises(NotFinite, match="at step 0, and there is no checkpoint to go back to"):
        alone.steps(1)


def test_micro_batches_add_up_to_the_whole() -> None:
    whole, parts = Alone(set()).steps(20), Alone(set(), batch={"size": 64, "microSize": 7}).steps(20)
    assert max(float((whole[name] - parts[name]).abs().max()) for name in whole) < 1e-9


def test_bfloat16_computes_in_it_and_keeps_the_parameters() -> None:
    precise, rough = Alone(set(), torch.float32).steps(5), Alone(set(), torch.float32, precision="bfloat16").steps(5)
    assert {t.dtype for t in rough.values()} == {torch.float32}
    apart = max(float((precise[name] - rough[name]).abs().max()) for name in precise)
    assert 0 < apart < 0.05
    with pytest.raises(InvalidJob, match="precision is bfloat16, but the model is of float64"):
        Alone(set(), torch.float64, precision="bfloat16")
