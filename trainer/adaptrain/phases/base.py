"""What every phase that trains on samples has, so that a phase is a file that says what its loss is.

A step's gradient is the mean over the global batch: each member divides the sum over its share by the size of the
whole batch, and the sums add up. So the trajectory does not depend on how many members there are.
"""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from adaptrain_api.contracts.coordinator_api import PhaseProgress
from adaptrain_api.phases import phase as api

from adaptrain.data.augment import augment
from adaptrain.data.dataset import DataSet, Split
from adaptrain.data.rng import derive, normal, seed_torch
from adaptrain.data.sampler import Sampler, share
from adaptrain.elastic.collectives.batch_norm import uses_batch_to_evaluate
from adaptrain.elastic.collectives.device import synchronize
from adaptrain.elastic.collectives.process_group import ElasticProcessGroup
from adaptrain.elastic.nonfinite import NonFiniteGuard
from adaptrain.elastic.state.replicated import ReplicatedState
from adaptrain.elastic.state.sample_log import SampleLog
from adaptrain.elastic.state.warmup import no_trace
from adaptrain.elastic.step import ElasticStep, Part
from adaptrain.errors import InvalidJob
from adaptrain.observability.metrics import WorkerMetrics
from adaptrain.phases.optimizers import build_optimizer

EVALUATION_BATCH = 1024
LOSS = "val/loss"


@dataclass(frozen=True)
class Context:
    """What a phase is given."""

    spec: api.Phase
    number: int
    """Its place in ``spec.phases``."""
    data: DataSet
    seed: int
    """The job's."""
    metrics: WorkerMetrics
    trace: SampleLog

    @property
    def path(self) -> str:
        """The phase in a manifest."""
        return f"phases[{self.number}]"


class Phase:
    """A phase of training on samples.

    A subclass says what the loss of each sample is, and may say what else is measured. It must be a pure function of
    the model, the samples and torch's generator, which is seeded by step and sample.

    Attributes:
        metric: chooses the best weights, and stops early; ``stop.earlyStopping.metric`` overrides it. More is better,
            but of a loss.
        measured: names of what ``measures`` returns.
    """

    metric = LOSS
    measured: tuple[str, ...] = ("loss",)

    def __init__(self, context: Context) -> None:
        spec = context.spec
        self.spec, self.data, self.path = spec, context.data, context.path
        self.number = context.number
        self.seed = context.seed if context.number == 0 else derive(context.seed, "phase", context.number)
        self.non_finite = NonFiniteGuard(
            spec.non_finite,
            f"lower {self.path}.optimizer.learningRate, set its clipNorm, check the data, or let {self.path}.nonFinite"
            f" be {' or '.join(p for p in ('skip', 'rollback') if p != spec.non_finite)}",
        )
        if spec.stop.early_stopping is not None:
            self.metric = spec.stop.early_stopping.metric
        self._metrics, self._trace = context.metrics, context.trace

    # What a subclass says

    def losses(self, model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The loss of each sample.

        Args:
            x: inputs [n, …]
            y: classes int64 [n]

        Returns:
            [n], differentiable.
        """
        raise NotImplementedError

    def measures(self, model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        """What is measured of each sample when the model is evaluated: name → [n]. Their means over the validation set
        are its metrics, as ``val/<name>``: all of ``measured``, and ``loss`` among them."""
        return {"loss": self.losses(model, x, y)}

    def prepare(self, x: torch.Tensor, ids: torch.Tensor, epoch: int) -> torch.Tensor:
        """Inputs [n, …] of the samples ``ids`` int64 [n] as they go into the model when it is trained: augmented. What
        is random in them must follow from the seed, the epoch and the sample alone (``normal_like``)."""
        if self.spec.augmentation is None:
            return x
        seed = derive(self.seed, "augmentation", epoch)
        return augment(x, ids, self.spec.augmentation, seed, f"{self.path}.augmentation")

    def optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """A fresh optimizer for the phase."""
        return build_optimizer(self.spec.optimizer, model)

    def normal_like(self, x: torch.Tensor, ids: torch.Tensor, epoch: int) -> torch.Tensor:
        """Standard normal numbers of the shape of ``x`` [n, …], which depend on the seed, the epoch and the samples
        ``ids`` int64 [n], and not on the worker that draws them."""
        counters = ids.numpy().astype(np.uint64) << np.uint64(32)
        each = counters[:, None] + np.arange(x[0].numel(), dtype=np.uint64)[None, :]
        return torch.from_numpy(normal(derive(self.seed, "normal", epoch), each)).view_as(x).to(x.dtype)

    # How it is run

    def attach(self, state: ReplicatedState) -> None:
        """Train this state from now on.

        Raises:
            InvalidJob: the phase does not go with its model.
        """
        self.state = state
        self._dtype = next(state.model.parameters()).dtype
        if self.spec.precision == "bfloat16" and self._dtype != torch.float32:
            raise InvalidJob(
                f"{self.path}.precision is bfloat16, but the model is of {str(self._dtype).removeprefix('torch.')}:"
                " make it one of float32, or remove precision"
            )
        self._frozen = _frozen(state.model)
        self._train_size = len(self.data.train)
        micro_size = self.spec.batch.micro_size
        whole = micro_size is None or micro_size >= self.spec.batch.size
        order = Sampler(self._train_size, self.seed)
        self._step = ElasticStep(state, order, self.non_finite, self._metrics, self._trace, whole)

    @property
    def over(self) -> bool:
        """Whether its end was reached."""
        return bool(self.state.counters.stopped)

    @property
    def loss(self) -> float | None:
        """Mean training loss of the last steps."""
        return self._step.loss

    @property
    def steps(self) -> int:
        """Upper bound of its steps, if none are taken yet."""
        stop = self.spec.stop
        bounds = [] if stop.steps is None else [stop.steps]
        if stop.epochs is not None:
            bounds.append(stop.epochs * math.ceil(self._train_size / self.spec.batch.size))
        return min(bounds)

    @property
    def remaining_steps(self) -> int:
        """Upper bound of its steps that are still to be taken, while it runs."""
        c, stop = self.state.counters, self.spec.stop
        if c.stopped:
            return 0
        bounds = [] if stop.steps is None else [stop.steps - (c.step - c.phase_step)]
        if stop.epochs is not None:
            left = (stop.epochs - c.epoch) * self._train_size - c.cursor
            bounds.append(math.ceil(left / self.spec.batch.size))
        return max(0, min(bounds))

    @property
    def progress(self) -> PhaseProgress:
        """How far it is, while it runs."""
        c = self.state.counters
        return PhaseProgress(
            name=self.spec.name, state="running", steps=c.step - c.phase_step, epochs=c.epoch, metrics=c.metrics
        )

    @property
    def came_to(self) -> PhaseProgress:
        """What it came to, once it is over."""
        c = self.state.counters
        return self.progress.model_copy(update={"state": "complete", "metrics": c.best, "message": c.stopped})

    def unit(self, group: ElasticProcessGroup) -> None:
        """Evaluate where that is due, else take a step.

        Raises:
            ProcessGroupBroken: a member was lost; the state is as before.
        """
        if self._evaluation_is_due:
            self._evaluate(group)
            self.state.applied(group)
        else:
            self._train(group)

    @property
    def _evaluation_is_due(self) -> bool:
        c = self.state.counters
        return c.step > c.evaluated_step and (c.cursor == 0 or c.step - c.phase_step == self.spec.stop.steps)

    def _train(self, group: ElasticProcessGroup) -> None:
        c, step = self.state.counters, self._step
        try:
            with self._metrics.timing() as clock:
                part = step.take(group, step.order.batch(c.epoch, c.cursor, self.spec.batch.size))
                x, y = self.data.train.fetch(part.ids, derive(self.seed, "sample", c.epoch))
                x, y = self.prepare(x, part.ids, c.epoch).to(self.state.device), y.to(self.state.device)
                clock.loaded()
                self._add(group, part, x, y)
                step.sum(group)
                clock.waited(group.waited)
                if not step.apply(group, self.spec.optimizer.clip_norm):
                    c.evaluated_step = c.step - 1  # the weights may be others
        finally:
            step.discard()

    def _add(self, group: ElasticProcessGroup, part: Part, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add this process's part of the mean loss, in micro-batches."""
        state = self.state
        state.model.train()
        for module in self._frozen:
            module.training = False
        most = self.spec.batch.micro_size or len(part.ids)
        micro_batches = list(zip(*(torch.split(t, most) for t in (part.ids, x, y)), strict=True))
        for number, (some, inputs, labels) in enumerate(micro_batches, 1):
            group.check()
            # A user's dropout draws from here: the same again when the step is taken again by as many members.
            seed_torch(derive(self.seed, "step", state.counters.step, int(some[0])))
            counted = min(len(some), max(0, part.counted - most * (number - 1)))
            with self._autocast(inputs):
                losses = self.losses(state.model, inputs.to(self._dtype), labels)
            if losses.shape != some.shape:
                raise InvalidJob(
                    f"{self.path}: {type(self).__name__}.losses returned {list(losses.shape)} for {len(some)} samples:"
                    " it must return the loss of each"
                )
            loss = losses[:counted].sum() / part.total
            self._step.add(loss, group if number == len(micro_batches) else None)

    def _autocast(self, x: torch.Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.spec.precision == "bfloat16")

    def warm_up(self, group: ElasticProcessGroup, workers: int) -> None:
        """Take a forward and a backward pass that leave no trace, before this worker joins: over one sample, as often
        as there are samples for the last of so many ``workers``. Where a compiler is in use, evaluate as well.

        Raises:
            Exception: whatever the first step would raise.
        """
        state, size = self.state, min(self.spec.batch.size, self._train_size)
        # A batch normalization takes one sample of a larger batch only together with other members.
        each = max(size // workers, min(2, size))
        first = torch.zeros(1, dtype=torch.int64)
        own, counted = group.own(first.expand(each), spare=first)
        part = Part(own, counted, own, size)
        state.gradients.zero()
        with no_trace(state), state.statistics.step(group, counts=True, whole=self._step.whole):
            x, y = self.data.train.fetch(first, derive(self.seed, "sample", 0))
            x = self.prepare(x[own], own, epoch=0)
            self._add(group, part, x.to(state.device), y[own].to(state.device))
            synchronize(state.device)
            state.statistics.check()
            if "torch._dynamo" in sys.modules:
                self._try_evaluation(math.ceil(len(self.data.validation) / workers))

    @torch.no_grad()
    def _try_evaluation(self, samples: int) -> None:
        """Compile what evaluates: the others would wait for that as well."""
        self.state.model.eval()
        x, y = self.data.validation.fetch(torch.zeros(1, dtype=torch.int64))
        some = torch.zeros(min(EVALUATION_BATCH, samples), dtype=torch.int64)
        self._measure(x[some], y[some])

    def _evaluate(self, group: ElasticProcessGroup) -> None:
        c, stop = self.state.counters, self.spec.stop
        c.metrics = {f"val/{name}": value for name, value in self._score(group, self.data.validation).items()}
        c.evaluated_step = c.step
        self.state.history.evaluated(c.step, c.epoch, c.metrics)
        if self.metric not in c.metrics:
            raise InvalidJob(
                f"{self.path}.stop.earlyStopping.metric is {self.metric}, which this phase does not measure: it"
                f" measures {', '.join(c.metrics)}"
            )
        sign = -1 if self.metric == LOSS else 1
        gain = sign * (c.metrics[self.metric] - c.best[self.metric]) if c.best else 1.0
        if gain > 0:
            c.best_epoch = c.epoch
        # Many epochs tie on a small validation set's accuracy: the surest of them is kept.
        if gain > 0 or (gain == 0 and c.metrics[LOSS] < c.best[LOSS]):
            c.best, c.best_step = c.metrics, c.step
            self.state.keep_best()
        if stop.epochs is not None and c.epoch >= stop.epochs:
            c.stopped = f"{c.epoch} epochs"
        elif stop.steps is not None and c.step - c.phase_step >= stop.steps:
            c.stopped = f"{c.step - c.phase_step} steps"
        elif stop.early_stopping is not None and c.epoch - c.best_epoch >= stop.early_stopping.patience:
            c.stopped = f"no better {self.metric} for {stop.early_stopping.patience} epochs"

    def test(self, group: ElasticProcessGroup) -> None:
        """Score the best weights on the test set.

        Raises:
            ProcessGroupBroken: a member was lost; the state is as before.
        """
        assert self.data.test is not None
        with _weights(self.state.model, self.state.best):
            scored = self._score(group, self.data.test)
        c = self.state.counters
        tested = {f"test/{name}": value for name, value in scored.items()}
        c.metrics = c.metrics | tested
        self.state.history.evaluated(c.step, c.epoch, tested)

    @torch.no_grad()
    def _score(self, group: ElasticProcessGroup, split: Split) -> dict[str, float]:
        """Means of what is measured over a split, each member measuring a part of it."""
        model = self.state.model
        model.eval()
        every = torch.arange(len(split))
        mine = share(every, group.rank, group.size)
        if uses_batch_to_evaluate(model):  # batches must not depend on the number of members: one scores all
            mine = every[: len(every) if group.rank == 0 else 0]
        sums = torch.zeros(len(self.measured) + 1, dtype=torch.float64)  # the last is the group's
        for ids in torch.split(mine, EVALUATION_BATCH * group.processes):
            taken, counted = group.own(ids, spare=every[:1])
            if len(taken) == 0:
                continue
            seed_torch(derive(self.seed, "evaluation", int(taken[0])))
            found = self._measure(*split.fetch(taken))
            sums[:-1] += torch.stack([found[name][:counted].double().cpu().sum() for name in self.measured])
        group.total(sums)
        return {name: float(total) / len(split) for name, total in zip(self.measured, sums, strict=False)}

    def _measure(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        x, y = x.to(self.state.device), y.to(self.state.device)
        with self._autocast(x):
            return self.measures(self.state.model, x.to(self._dtype), y)


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
