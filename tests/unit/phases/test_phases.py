"""A state that goes from one phase to the next: what it takes along, and who gets it."""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from adaptrain.data.dataset import DataSet, Split
from adaptrain.elastic.checkpoint.manager import Checkpoints, Policy
from adaptrain.elastic.collectives.process_group import ElasticProcessGroup
from adaptrain.elastic.membership.client import CoordinatorClient
from adaptrain.elastic.membership.socket_abort import SocketAbort
from adaptrain.elastic.state.sample_log import SampleLog
from adaptrain.elastic.storage.directory import Directory
from adaptrain.errors import InvalidJob
from adaptrain.observability.metrics import WorkerMetrics
from adaptrain.phases.base import Phase
from adaptrain.phases.sequence import PhaseSequence
from torch import nn
from torch.nn import functional as F

from tests.e2e.local_jobs import job

SAMPLES, BATCH = 40, 16
STEPS = 3
"""Of a pass."""
ADAMW = {"name": "adamw", "learningRate": 0.01}
SGD = {"name": "sgd", "learningRate": 0.02, "momentum": 0.9}
Pair = Callable[[Callable[[ElasticProcessGroup], Any], Callable[[ElasticProcessGroup, Any], Any]], list[Future[Any]]]


class Half(Phase):
    """A loss of another shape than it must be."""

    def losses(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(x), y)


class NoPhase:
    """Something else."""


def phase(name: str, optimizer: dict[str, Any], **more: Any) -> dict[str, Any]:
    base = {"name": name, "type": "supervised", "optimizer": optimizer, "batch": {"size": BATCH}, "stop": {"epochs": 2}}
    return base | more


def task(*phases: dict[str, Any], test: bool = False) -> PhaseSequence:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(SAMPLES, 4, dtype=torch.float64, generator=generator)
    split = Split((x, torch.arange(SAMPLES) % 3))
    spec = job(phases=list(phases or (phase("one", ADAMW), phase("two", SGD)))).spec
    assert spec.phases is not None
    data = DataSet(split, split, split if test else None, (4,), 3)
    metrics, trace = WorkerMetrics("n", "j"), SampleLog(None, "")
    return PhaseSequence(spec.phases, lambda: nn.Linear(4, 3).double(), data, 5, metrics, trace)


def alone() -> ElasticProcessGroup:
    told: Any = SimpleNamespace(
        must_leave=False, should_leave=False, doing=lambda *_: torch.no_grad(), note=lambda _: None
    )
    return ElasticProcessGroup(cast(CoordinatorClient, told), SocketAbort(), (1 << 32) + 1, 0, 1, None)


def take(one: PhaseSequence, units: int) -> PhaseSequence:
    group = alone()
    for _ in range(units):
        one.unit(group)
    return one


def until_second(one: PhaseSequence) -> PhaseSequence:
    group = alone()
    while one.state.counters.phase == 0:
        one.unit(group)
    return one


def same(one: PhaseSequence, other: PhaseSequence) -> bool:
    a, b = one.state.tensors(), other.state.tensors()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_next_phase_begins_with_the_best_weights_and_a_fresh_optimizer() -> None:
    one = task()
    group = alone()
    while not one.current.over:
        one.unit(group)
    best = {name: t.clone() for name, t in one.state.best.items()}
    assert any(name.endswith("exp_avg") for name in one.state.tensors())
    one.unit(group)
    c = one.state.counters
    assert all(torch.equal(t, best[name]) for name, t in one.state.model.state_dict().items())
    assert not any(name.startswith("optimizer.") for name in one.state.tensors())
    assert type(one.state.optimizer).__name__ == "SGD"
    assert (c.phase, c.phase_step, c.step, c.epoch, c.cursor, c.stopped, c.best) == (1, 6, 6, 0, 0, "", {})
    assert c.phases == [{"name": "one", "state": "complete", "steps": 6, "epochs": 2, "metrics": c.phases[0]["metrics"],
                         "message": "2 epochs"}]  # fmt: skip


def test_what_a_phase_begins_with_is_scored_and_may_stay_the_best() -> None:
    one = task(phase("one", ADAMW), phase("two", {"name": "sgd", "learningRate": 100}))
    take(until_second(one), 1)
    first = dict(one.state.counters.best)
    assert first
    group = alone()
    while not one.finished:
        one.unit(group)
    assert one.state.counters.best["val/accuracy"] >= first["val/accuracy"]


def test_each_phase_has_an_order_of_its_own() -> None:
    one = task()
    orders = [p._step.order.batch(0, 0, SAMPLES).tolist() for p in one._phases]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(SAMPLES))


def test_steps_are_counted_from_the_phases_beginning_and_together() -> None:
    one = task(phase("one", ADAMW, stop={"steps": 4}), phase("two", SGD, stop={"epochs": 3, "steps": 7}))
    assert one.remaining_steps == 4 + 7
    group = alone()
    while not one.finished:
        one.unit(group)
    told = [(p["state"], p["steps"], p["message"]) for p in one.report()["phases"]]
    assert told == [("complete", 4, "4 steps"), ("complete", 7, "7 steps")]
    assert one.state.counters.step == 11
    assert one.remaining_steps == 0


def test_only_the_last_phase_is_tested() -> None:
    one = task(test=True)
    until_second(one)
    assert not any(name.startswith("test/") for name in one.state.counters.phases[0]["metrics"])
    group = alone()
    while not one.finished:
        one.unit(group)
    assert "test/accuracy" in one.state.counters.metrics


@pytest.mark.parametrize("steps", [0, 2])
def test_a_member_that_joins_gets_the_phase(pair: Pair, steps: int) -> None:
    ahead, joins = take(until_second(task()), 1 + steps), task()

    def lead(group: ElasticProcessGroup) -> Any:
        ahead.state.heal(group)
        ahead.unit(group)

    def follow(group: ElasticProcessGroup, _: Any) -> Any:
        joins.state.heal(group)
        joins.unit(group)

    for done in pair(lead, follow):
        done.result(30)
    assert same(ahead, joins)
    assert joins.current.spec.name == "two"


def test_a_member_that_missed_the_change_is_healed(pair: Pair) -> None:
    """The change is a unit: of a group that broke, some may have applied it, and others not."""
    ahead, behind = task(), task()
    group = alone()
    for one in (ahead, behind):
        while not one.current.over:
            one.unit(group)
    take(ahead, 1)
    for done in pair(lambda g: ahead.state.heal(g), lambda g, _: behind.state.heal(g)):
        done.result(30)
    assert behind.state.counters.phase == 1
    assert same(take(ahead, 4), take(behind, 4))


def test_a_checkpoint_of_the_second_phase_goes_on_there(tmp_path: Path) -> None:
    control = cast(Any, SimpleNamespace(connected=True, epoch=(1 << 32) + 1, may_commit=True, note=lambda _: None,
                                        doing=lambda *_: torch.no_grad()))  # fmt: skip
    one, other = take(until_second(task()), 3), task()
    Checkpoints(Directory(tmp_path), Policy(60, 3), control).save(one.state)
    assert Checkpoints(Directory(tmp_path), Policy(60, 3), control).load(other.state)
    assert same(one, other)
    assert same(take(one, 3), take(other, 3))
    with pytest.raises(InvalidJob, match=r"is in phases\[1\], and this job has 1 phases"):
        Checkpoints(Directory(tmp_path), Policy(60, 3), control).load(task(phase("one", ADAMW)).state)


def test_a_rollback_to_an_earlier_phase_takes_its_weights_alone() -> None:
    one = take(task(), 2)
    before = one.state.capture()
    take(until_second(one), 3)
    room = one.state.room(before["counters"])
    assert any(name.endswith("exp_avg") for name in room)
    one.state.rollback(before, before["counters"])
    assert all(torch.equal(t, before[f"model.{name}"]) for name, t in one.state.model.state_dict().items())
    assert one.state.counters.phase == 1
    assert not any(name.startswith("optimizer.") for name in one.state.tensors())
    take(one, 2)


def test_a_beginning_anew_goes_back_to_the_first_phase() -> None:
    one, fresh = until_second(task()), task()
    one.reset()
    assert one.state.counters.phase == 0
    assert same(one, fresh)


@pytest.mark.parametrize(
    ("custom", "words"),
    [
        ({"name": f"{__name__}:NoPhase"}, r"phases\[0\].custom.name: .* is no subclass of adaptrain.phases.base.Phase"),
        ({"name": f"{__name__}:Missing"}, r"phases\[0\].custom.name: .* has no callable 'Missing'"),
        ({"name": f"{__name__}:Half", "args": {"a": 1}}, r"phases\[0\].custom.args.a: unknown"),
    ],
)
def test_what_is_no_phase_is_refused_when_it_is_built(custom: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidJob, match=words):
        task(phase("one", ADAMW, type="custom", custom=custom))


def test_losses_that_are_not_one_for_each_sample_are_refused() -> None:
    one = task(phase("one", ADAMW, type="custom", custom={"name": f"{__name__}:Half"}))
    with pytest.raises(InvalidJob, match=r"Half.losses returned \[\] for 16 samples: it must return the loss of each"):
        take(one, 1)


def test_a_metric_that_is_not_measured_is_refused() -> None:
    stop = {"epochs": 2, "earlyStopping": {"metric": "val/accuracy"}}
    one = task(phase("one", ADAMW, type="custom", custom={"name": f"{__name__}:Plain"}, stop=stop))
    with pytest.raises(InvalidJob, match="metric is val/accuracy, which this phase does not measure"):
        take(one, STEPS + 1)


class Plain(Phase):
    """A classifier."""

    def losses(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(x), y, reduction="none")
