"""One step of training, which all members of a group take together, or none.

::

    part = step.take(group, ids)            # which samples this process computes
    step.add(loss / part.total)             # for each micro-batch
    step.sum(group)                         # over all members
    step.apply(group, clip_norm)            # the optimizer's step, or what becomes of one that is not finite

A ProcessGroupBroken that one of them raises leaves the state as it was before ``take``; after ``discard`` the step may
be taken again, in the next group. Only ``apply`` changes the state: model, optimizer, counters.
"""

import time
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch

from adaptrain.elastic.collectives.device import synchronize
from adaptrain.elastic.collectives.gradients import NOTHING, Said
from adaptrain.elastic.collectives.process_group import ElasticProcessGroup
from adaptrain.elastic.load_balancer import LoadBalancer
from adaptrain.elastic.nonfinite import NonFiniteGuard
from adaptrain.elastic.state.replicated import ReplicatedState
from adaptrain.elastic.state.sample_log import SampleLog
from adaptrain.observability.metrics import WorkerMetrics

MOST_LOSSES = 32
"""Steps over which the reported loss is the mean."""


class Order(Protocol):
    """In which order samples are taken."""

    def batch(self, epoch: int, cursor: int, size: int) -> torch.Tensor:
        """Ids of the global batch at a place: int64 [≤ size]."""

    def ended(self, epoch: int, cursor: int) -> bool:
        """Whether the pass over the data is complete at a place."""


@dataclass(frozen=True)
class Part:
    """What one process computes of a global batch."""

    ids: torch.Tensor
    """Samples, int64 [≥ 1]: at least one, since all processes of all members compute something."""
    counted: int
    """So many of the first ones count; the others are there to exchange statistics with."""
    share: torch.Tensor
    """Samples of this worker, over all of its processes."""
    total: int
    """Samples of the whole batch."""


class ElasticStep:
    """The steps of a training, one after the other.

    Args:
        order: of the samples.
        whole: whether a forward pass sees all of this process's samples of a step.

    Attributes:
        losses: of the last applied steps.
    """

    def __init__(
        self,
        state: ReplicatedState,
        order: Order,
        non_finite: NonFiniteGuard,
        metrics: WorkerMetrics,
        trace: SampleLog,
        whole: bool,
    ) -> None:
        self.state = state
        self.order = order
        self.non_finite = non_finite
        self.losses: deque[float] = deque(maxlen=MOST_LOSSES)
        self._metrics, self._trace, self.whole = metrics, trace, whole
        self._shares = LoadBalancer()
        self._part: Part | None = None
        self._began = 0.0

    def take(self, group: ElasticProcessGroup, ids: torch.Tensor) -> Part:
        """Begin a step over the global batch ``ids``: int64 [≥ 1].

        Raises:
            ProcessGroupBroken: a member was lost while speeds were exchanged.
        """
        c = self.state.counters
        share = self._shares.mine(group, c.step, ids)
        own, counted = group.own(share, spare=ids[:1])
        if len(own) == 0:
            own, counted = ids[:1], 0
        self._part = part = Part(own, counted, share, len(ids))
        self._trace.loaded(group, c, own[:counted])
        self._began, group.waited = time.perf_counter(), 0.0
        self.state.gradients.zero()
        self.state.statistics.begin(group, counts=counted > 0, whole=self.whole)
        return part

    def add(self, loss: torch.Tensor, group: ElasticProcessGroup | None, weight: float = 0.0) -> None:
        """Add a micro-batch's part of the batch's mean loss, and its gradient.

        Args:
            loss: a scalar: its sum divided by the samples of the global batch.
            group: given with the last micro-batch: gradients are sent while others are computed.
            weight: its part of what ``Gradients.weigh`` divides by, if that is called after ``sum``.
        """
        # Backward passes that exchange statistics keep the order of sums to themselves.
        early = None if self.state.statistics.exchanged else group
        self.state.gradients.add(loss, early, weight)

    def sum(self, group: ElasticProcessGroup, said: Said = NOTHING) -> None:
        """Sum the gradients, the loss and what members say over all of them.

        Raises:
            ProcessGroupBroken: a member was lost.
            InvalidJob: a forward pass changed a buffer by what this member alone has seen.
        """
        part = self._part
        assert part is not None
        synchronize(self.state.device)
        self._shares.took(part.counted, time.perf_counter() - self._began - group.waited)
        if part.total:
            self.state.statistics.check()
        self.state.gradients.sum(group, said)

    def apply(
        self,
        group: ElasticProcessGroup,
        clip_norm: float | None = None,
        around: AbstractContextManager[object] | None = None,
    ) -> bool:
        """Let the optimizer apply the sum, and move on behind the batch. Whether it was applied: samples of a step
        whose loss or gradient is not finite are passed over.

        Args:
            clip_norm: largest norm of the gradient, over all parameters together.
            around: the optimizer's step.

        Raises:
            NotFinite: training can't go on.
            ProcessGroupBroken: a member was lost while all went back to a checkpoint.
        """
        part, state, c = self._part, self.state, self.state.counters
        assert part is not None
        spoiled = state.gradients.not_finite()
        if spoiled is None:
            with around or nullcontext():
                state.step(clip_norm)
        else:
            state.statistics.end(applied=False)
            self.non_finite.skip_step(group, state, spoiled)
        self._part = None
        if spoiled is None:
            self._trace.applied(group, c)
            self.losses.append(state.gradients.loss)
            self._metrics.samples.inc(part.counted)
            self.non_finite.applied(state)
            c.step += 1
            rate = state.learning_rate
            state.history.step(c.step, c.epoch, state.gradients.loss, rate, part.total, c.skipped)
        c.cursor += part.total
        if self.order.ended(c.epoch, c.cursor):
            c.epoch, c.cursor = c.epoch + 1, 0
        state.applied(group)
        return spoiled is None

    def discard(self) -> None:
        """End a step that was not applied: running statistics are as before it. Nothing, if none is under way."""
        self._part = None
        self.state.statistics.end(applied=False)

    def attend(self, group: ElasticProcessGroup) -> None:
        """Begin a step, if other members take one, of which this one computes nothing.

        Raises:
            ProcessGroupBroken: a member was lost meanwhile.
        """
        nothing = torch.arange(0)
        self._shares.mine(group, self.state.counters.step, nothing)
        self._part, self._began = Part(nothing, 0, nothing, 0), time.perf_counter()
        self.state.gradients.zero()

    @property
    def loss(self) -> float | None:
        """Mean loss of the last applied steps; None: this process has applied none."""
        return sum(self.losses) / len(self.losses) if self.losses else None
