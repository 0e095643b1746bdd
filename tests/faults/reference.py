"""The trajectory that nothing disturbed: the same task, taken by one member in this process."""

from types import SimpleNamespace
from typing import Any, cast

import torch
from adaptrain.data.registry import load_data
from adaptrain.elastic.collectives.process_group import ElasticProcessGroup
from adaptrain.elastic.membership.client import CoordinatorClient
from adaptrain.elastic.membership.socket_abort import SocketAbort
from adaptrain.elastic.state.sample_log import SampleLog
from adaptrain.observability.metrics import WorkerMetrics
from adaptrain.phases.sequence import PhaseSequence
from adaptrain_api.training.job import AdaptiveTrainingJob

from tests.faults.model import mlp

Tensors = dict[str, torch.Tensor]


class Reference:
    """Parameters and optimizer after each step, computed as far as they are asked for."""

    def __init__(self, job: AdaptiveTrainingJob) -> None:
        data = load_data(job.spec.data)
        self.samples, self.batch = len(data.train), job.spec.phases[0].batch.size
        alone = cast(CoordinatorClient, SimpleNamespace(must_leave=False, should_leave=False))
        self._group = ElasticProcessGroup(alone, SocketAbort(), epoch=1, rank=0, size=1, links=None)
        metrics, trace = WorkerMetrics("reference", job.metadata.name), SampleLog(None, "")
        self._task = PhaseSequence(
            job.spec.phases, lambda: mlp(seconds=0), data, job.spec.seed, metrics, trace
        )  # fmt: skip
        self._after = [self._copy()]

    def after(self, step: int) -> Tensors:
        """The state after so many steps."""
        while len(self._after) <= step:
            before = self._task.state.counters.step
            self._task.unit(self._group)
            if self._task.state.counters.step > before:
                self._after.append(self._copy())
        return self._after[step]

    def _copy(self) -> Tensors:
        tensors: dict[str, Any] = self._task.state.tensors()
        return {name: t.clone() for name, t in tensors.items() if not name.startswith("best.")}
