"""Supervised training: minimize cross-entropy over labelled samples.

A step's gradient is the mean over the global batch: each member divides the sum over its share by the size of the
whole batch, and the sums add up. So the trajectory does not depend on how many members there are.
"""

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from adaptrain_api.phases import SupervisedPhase

from adaptrain.data import DataSet, Split
from adaptrain.data.augment import augment
from adaptrain.elastic.batchnorm import uses_batch_to_evaluate
from adaptrain.elastic.device import settle
from adaptrain.elastic.group import Group
from adaptrain.elastic.nonfinite import NonFinite
from adaptrain.elastic.sampler import Sampler, share
from adaptrain.elastic.shares import Shares
from adaptrain.elastic.state import ReplicatedState
from adaptrain.elastic.trace import Trace
from adaptrain.elastic.warmup import no_trace
from adaptrain.elastic.weights import Weights
from adaptrain.errors import InvalidJob
from adaptrain.metrics import WorkerMetrics
from adaptrain.phases.optimizers import build_optimizer
from adaptrain.seeds import derive, seed_torch

EVALUATION_BATCH = 1024
DEFAULT_METRIC = "val/accuracy"


class SupervisedTask:
    """One supervised phase as an elastic task."""

    def __init__(
        self,
        phase: SupervisedPhase,
        build: Callable[[], torch.nn.Module],
        data: DataSet,
        seed: int,
        metrics: WorkerMetrics,
        trace: Trace,
        replica: type[ReplicatedState] = ReplicatedState,
        weights: Weights | None = None,
    ) -> None:
        self._replica = replica
        self._weights = weights
        self._phase = phase
        self._build = build
        self._data = data
        self._seed = seed
        self._metrics = metrics
        self._trace = trace
        self.state = self._fresh()
        self._frozen = _frozen(self.state.model)
        micro_size = phase.batch.micro_size
        self._whole = micro_size is None or micro_size >= phase.batch.size
        """Whether a forward pass sees all of this worker's samples."""
        self._dtype = next(self.state.model.parameters()).dtype
        if phase.precision == "bfloat16" and self._dtype != torch.float32:
            raise InvalidJob(
                f"phases[0].precision is bfloat16, but the model is of {str(self._dtype).removeprefix('torch.')}: make"
                " it one of float32, or remove precision"
            )
        self.non_finite = NonFinite(
            phase.non_finite,
            "lower phases[0].optimizer.learningRate, set its clipNorm, check the data, or let phases[0].nonFinite be"
            f" {' or '.join(p for p in ('skip', 'rollback') if p != phase.non_finite)}",
        )
        self._sampler = Sampler(len(data.train), seed)
        self._shares = Shares()
        self._losses: deque[float] = deque(maxlen=32)
        stopping = phase.stop.early_stopping
        self._metric = stopping.metric if stopping else DEFAULT_METRIC

    @property
    def finished(self) -> bool:
        return "test/accuracy" in self.state.counters.metrics or self._done_without_test

    @property
    def _done_without_test(self) -> bool:
        return bool(self.state.counters.stopped) and self._data.test is None

    @property
    def batch_size(self) -> int:
        return self._phase.batch.size

    @property
    def remaining_steps(self) -> int:
        c, stop = self.state.counters, self._phase.stop
        if c.stopped:
            return 0
        bounds = []
        if stop.epochs is not None:
            left = stop.epochs * len(self._data.train) - c.epoch * len(self._data.train) - c.cursor
            bounds.append(math.ceil(left / self._phase.batch.size))
        if stop.steps is not None:
            bounds.append(stop.steps - c.step)
        return min(bounds)

    def reset(self) -> None:
        """Go back to the initial weights."""
        fresh = self._fresh()
        self.state.restore(fresh.capture())

    def begin(self, group: Group) -> None:
        """Take the weights that training starts from. They are scored first, and may stay the best.

        Raises:
            InvalidJob: there is no such file, or it is of another model.
            OSError: it can't be read now.
        """
        if self._weights is None:
            return
        self.state.begin_with(self._weights)
        self.state.counters.evaluated_step = -1
        said = f", sha256 {self._weights.sha256}" if self._weights.sha256 is not None else ""
        group.note(f"starts from the weights in {self._weights.path}{said}")

    def warm_up(self, group: Group, workers: int) -> None:
        """Take a forward and a backward pass that leave no trace, before this worker joins: over one sample, as often
        as there are samples for the last of so many ``workers``. Where a compiler is in use, evaluate as well.

        Raises:
            Exception: whatever the first step would raise.
        """
        state = self.state
        whole = min(self._phase.batch.size, len(self._data.train))
        # A batch normalization takes one sample of a larger batch only together with other members.
        each = max(whole // workers, min(2, whole))
        first = torch.zeros(1, dtype=torch.int64)
        taken, counted = group.own(first.expand(each), spare=first)
        state.gradients.zero()
        with no_trace(state), state.statistics.step(group, counts=True, whole=self._whole):
            x, y = self._data.train.fetch(first, derive(self._seed, "sample", 0))
            x, y = self._prepared(x[taken], y[taken], taken, epoch=0)
            self._add_gradients(group, taken, x, y, counted, whole)
            settle(state.device)
            state.statistics.check()
            if "torch._dynamo" in sys.modules:
                self._try_evaluation(math.ceil(len(self._data.validation) / workers))

    @torch.no_grad()
    def _try_evaluation(self, share: int) -> None:
        """Compile what evaluates: the others would wait for that as well."""
        self.state.model.eval()
        x, _ = self._data.validation.fetch(torch.zeros(1, dtype=torch.int64))
        self._logits(x[torch.zeros(min(EVALUATION_BATCH, share), dtype=torch.int64)].to(self.state.device))

    def report(self) -> dict[str, Any]:
        c = self.state.counters
        return {
            "step": c.step,
            "data_epoch": c.epoch,
            "loss": sum(self._losses) / len(self._losses) if self._losses else None,
            "learning_rate": self._phase.optimizer.learning_rate,
            "batch_size": self._phase.batch.size,
            "metrics": c.metrics,
            "best": c.best,
            "skipped_steps": c.skipped,
        }

    def unit(self, group: Group) -> None:
        c = self.state.counters
        if self._evaluation_is_due:
            self._evaluate(group)
        elif c.stopped:
            self._test(group)
        else:
            self._step(group)
        self.state.applied(group)

    @property
    def _evaluation_is_due(self) -> bool:
        c = self.state.counters
        return c.step > c.evaluated_step and (c.cursor == 0 or c.step == self._phase.stop.steps)

    def _fresh(self) -> ReplicatedState:
        seed_torch(derive(self._seed, "initial weights"))
        model = self._build()
        state = self._replica(model, build_optimizer(self._phase.optimizer, model))
        state.counters.samples = len(self._data.train)
        return state

    def _step(self, group: Group) -> None:
        c, state = self.state.counters, self.state
        with self._metrics.timing() as clock:
            ids = self._sampler.batch(c.epoch, c.cursor, self._phase.batch.size)
            taken, counted = group.own(self._shares.mine(group, c.step, ids), spare=ids[:1])
            mine = taken[:counted]
            if not counted:  # one that doesn't count: all members exchange the statistics of batch normalization
                taken = ids[:1]
            began, group.waited = time.perf_counter(), 0.0
            state.gradients.zero()
            with state.statistics.step(group, counts=counted > 0, whole=self._whole):
                x, y = self._data.train.fetch(taken, derive(self._seed, "sample", c.epoch))
                x, y = self._prepared(x, y, taken, c.epoch)
                clock.loaded()
                self._add_gradients(group, taken, x, y, counted, len(ids))
                settle(state.device)
                self._shares.took(len(mine), time.perf_counter() - began - group.waited)
                self._trace.loaded(group, c, mine)
                state.statistics.check()
                state.gradients.sum(group)
                clock.waited(group.waited)
                if (spoiled := state.gradients.not_finite()) is None:
                    state.step(self._phase.optimizer.clip_norm)
            if spoiled is not None:
                self.non_finite.pass_over(group, state, spoiled)
        if spoiled is None:
            self._trace.applied(group, c)
            self._losses.append(state.gradients.loss)
            self._metrics.samples.inc(len(mine))
            self.non_finite.applied(state)
            c.step += 1
            rate = self._phase.optimizer.learning_rate
            state.history.step(c.step, c.epoch, state.gradients.loss, rate, len(ids), c.skipped)
        else:
            c.evaluated_step = c.step - 1  # the weights may be others
        c.cursor += len(ids)
        if c.cursor >= len(self._data.train):
            c.epoch, c.cursor = c.epoch + 1, 0

    def _prepared(
        self, x: torch.Tensor, y: torch.Tensor, ids: torch.Tensor, epoch: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Samples as they go into the model, where it is."""
        if self._phase.augmentation is not None:
            x = augment(x, ids, self._phase.augmentation, derive(self._seed, "augmentation", epoch))
        return x.to(self.state.device), y.to(self.state.device)

    def _add_gradients(
        self, group: Group, ids: torch.Tensor, x: torch.Tensor, y: torch.Tensor, counted: int, total: int
    ) -> None:
        """Add this process's part of the mean loss over ``total`` samples, in micro-batches: of the first ``counted``
        samples."""
        state = self.state
        state.model.train()
        for module in self._frozen:
            module.training = False
        most = self._phase.batch.micro_size or len(ids)
        parts = list(zip(*(torch.split(t, most) for t in (ids, x, y)), strict=True))
        for number, (some, inputs, classes) in enumerate(parts, 1):
            group.check()
            # A user's dropout draws from here: the same again when the step is taken again by as many members.
            seed_torch(derive(self._seed, "step", state.counters.step, int(some[0])))
            logits = self._logits(inputs)
            if (left := max(0, counted - most * (number - 1))) < len(some):
                logits, classes = logits[:left], classes[:left]
            loss = F.cross_entropy(logits, classes, reduction="sum") / total
            # Backward passes that exchange statistics keep the order of sums to themselves.
            early = number == len(parts) and not state.statistics.exchanged
            state.gradients.add(loss, group if early else None)

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self._phase.precision == "bfloat16"):
            return self.state.model(x.to(self._dtype)).to(self._dtype)  # type: ignore[no-any-return]

    def _evaluate(self, group: Group) -> None:
        c, stop = self.state.counters, self._phase.stop
        accuracy, loss = self._score(group, self._data.validation)
        c.metrics = {"val/accuracy": accuracy, "val/loss": loss}
        c.evaluated_step = c.step
        self.state.history.evaluated(c.step, c.epoch, c.metrics)
        sign = -1 if self._metric == "val/loss" else 1
        gain = sign * (c.metrics[self._metric] - c.best[self._metric]) if c.best else 1.0
        if gain > 0:
            c.best_epoch = c.epoch
        # Many epochs tie on a small validation set's accuracy: the surest of them is kept.
        if gain > 0 or (gain == 0 and loss < c.best["val/loss"]):
            c.best, c.best_step = c.metrics, c.step
            self.state.keep_best()
        if stop.epochs is not None and c.epoch >= stop.epochs:
            c.stopped = f"{c.epoch} epochs"
        elif stop.steps is not None and c.step >= stop.steps:
            c.stopped = f"{c.step} steps"
        elif stop.early_stopping is not None and c.epoch - c.best_epoch >= stop.early_stopping.patience:
            c.stopped = f"no better {self._metric} for {stop.early_stopping.patience} epochs"

    def _test(self, group: Group) -> None:
        assert self._data.test is not None
        with _weights(self.state.model, self.state.best):
            accuracy, loss = self._score(group, self._data.test)
        c = self.state.counters
        tested = {"test/accuracy": accuracy, "test/loss": loss}
        c.metrics = c.metrics | tested
        self.state.history.evaluated(c.step, c.epoch, tested)

    @torch.no_grad()
    def _score(self, group: Group, split: Split) -> tuple[float, float]:
        """Accuracy and mean cross-entropy over a split, each member scoring a part of it."""
        model = self.state.model
        model.eval()
        sums = torch.zeros(4, dtype=torch.float64)
        every = torch.arange(len(split))
        mine = share(every, group.rank, group.size)
        if uses_batch_to_evaluate(model):  # batches must not depend on the number of members: one scores all
            mine = every[: len(every) if group.rank == 0 else 0]
        for ids in torch.split(mine, EVALUATION_BATCH * group.processes):
            taken, counted = group.own(ids, spare=every[:1])
            if len(taken) == 0:
                continue
            x, y = split.fetch(taken)
            seed_torch(derive(self._seed, "evaluation", int(taken[0])))
            out, y = self._logits(x.to(self.state.device))[:counted].cpu(), y[:counted]
            sums[0] += (out.argmax(1) == y).sum()
            sums[1] += F.cross_entropy(out, y, reduction="sum")
        group.total(sums)
        return float(sums[0]) / len(split), float(sums[1]) / len(split)


def _frozen(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Modules that were built in evaluation mode, such as a batch normalization that keeps its statistics."""
    return [module for module in model.modules() if not module.training] if model.training else []


@contextmanager
def _weights(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> Iterator[None]:
    """Give a model other weights for a while."""
    own = {name: t.clone() for name, t in model.state_dict().items()}
    model.load_state_dict(weights)
    try:
        yield
    finally:
        model.load_state_dict(own)
