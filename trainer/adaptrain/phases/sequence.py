"""A job's phases, one after the other, as one elastic task: the next one begins with the weights that the one before it
left. The change is applied as a whole, as a step is."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from adaptrain_api.contracts.coordinator_api import PhaseProgress
from adaptrain_api.phases import phase as api

from adaptrain.data.dataset import DataSet
from adaptrain.data.rng import derive, seed_torch
from adaptrain.elastic.checkpoint.manager import Checkpoints
from adaptrain.elastic.collectives.process_group import ElasticProcessGroup
from adaptrain.elastic.state.replicated import ReplicatedState
from adaptrain.elastic.state.sample_log import SampleLog
from adaptrain.elastic.storage.weights import Weights
from adaptrain.errors import InvalidJob
from adaptrain.observability.metrics import WorkerMetrics
from adaptrain.phases.base import Context, Phase
from adaptrain.phases.registry import build_phase


class PhaseSequence:
    """All phases of a job, over one state.

    Args:
        build: makes the model.
        replica: what holds this process's part of the state.
        weights: what the first phase begins with; None: the model's own.
    """

    def __init__(
        self,
        phases: Sequence[api.Phase],
        build: Callable[[], torch.nn.Module],
        data: DataSet,
        seed: int,
        metrics: WorkerMetrics,
        trace: SampleLog,
        replica: type[ReplicatedState] = ReplicatedState,
        weights: Weights | None = None,
    ) -> None:
        self._build, self._seed, self._replica, self._initial = build, seed, replica, weights
        self._data = data
        self._phases = [
            build_phase(Context(spec, number, data, seed, metrics, trace)) for number, spec in enumerate(phases)
        ]
        self.state = self._fresh()
        self.state.make_optimizer = self._optimizer
        for phase in self._phases:
            phase.attach(self.state)

    @property
    def current(self) -> Phase:
        """The phase that runs."""
        return self._phases[self.state.counters.phase]

    @property
    def finished(self) -> bool:
        if not self._last or not self.current.over:
            return False
        return self._data.test is None or any(name.startswith("test/") for name in self.state.counters.metrics)

    @property
    def batch_size(self) -> int:
        return self.current.spec.batch.size

    @property
    def remaining_steps(self) -> int:
        return self.current.remaining_steps + sum(one.steps for one in self._phases[self.current.number + 1 :])

    def use(self, checkpoints: Checkpoints | None) -> None:
        for phase in self._phases:
            phase.non_finite.checkpoints = checkpoints

    def reset(self) -> None:
        self.state.restore(self._fresh().capture())

    def begin(self, group: ElasticProcessGroup) -> None:
        """Take the weights that training starts from. They are scored first, and may stay the best.

        Raises:
            InvalidJob: there is no such file, or it is of another model.
            OSError: it can't be read now.
        """
        if self._initial is None:
            return
        self.state.load_initial(self._initial)
        self.state.counters.evaluated_step = -1
        said = f", sha256 {self._initial.sha256}" if self._initial.sha256 is not None else ""
        group.note(f"starts from the weights in {self._initial.path}{said}")

    def warm_up(self, group: ElasticProcessGroup, workers: int) -> None:
        """Take a first pass that leaves no trace, before this worker joins (``Phase.warm_up``)."""
        self.current.warm_up(group, workers)

    def unit(self, group: ElasticProcessGroup) -> None:
        """Take a step, evaluate, test, or begin the next phase.

        Raises:
            ProcessGroupBroken: a member was lost; the state is as before.
        """
        phase = self.current
        if not phase.over:
            phase.unit(group)
        elif self._last:
            phase.test(group)
            self.state.applied(group)
        else:
            came_to = phase.came_to
            self.state.next_phase(came_to.model_dump(exclude_defaults=True))
            self.state.applied(group)
            if group.rank == 0:
                group.note(f"phase {self.current.spec.name} begins: {came_to.name} ended after {came_to.message}")

    def report(self) -> dict[str, Any]:
        c, phase = self.state.counters, self.current
        return {
            "step": c.step,
            "data_epoch": c.epoch,
            "loss": phase.loss,
            "learning_rate": self.state.learning_rate,
            "batch_size": self.batch_size,
            "metrics": c.metrics,
            "best": c.best,
            "skipped_steps": c.skipped,
            "phases": [one.model_dump(exclude_defaults=True) for one in self._progress()],
        }

    def _progress(self) -> list[PhaseProgress]:
        c = self.state.counters
        complete = [PhaseProgress.model_validate(one) for one in c.phases]
        running = self.current.came_to if self.finished else self.current.progress
        pending = [PhaseProgress(name=one.spec.name) for one in self._phases[c.phase + 1 :]]
        return [*complete, running, *pending]

    @property
    def _last(self) -> bool:
        return self.state.counters.phase == len(self._phases) - 1

    def _optimizer(self, phase: int) -> torch.optim.Optimizer:
        if not 0 <= phase < len(self._phases):
            raise InvalidJob(
                f"what training goes on from is in phases[{phase}], and this job has {len(self._phases)} phases: give"
                " it the phases of that training"
            )
        return self._phases[phase].optimizer(self.state.model)

    def _fresh(self) -> ReplicatedState:
        seed_torch(derive(self._seed, "initial weights"))
        model = self._build()
        state = self._replica(model, self._phases[0].optimizer(model))
        state.counters.samples = len(self._data.train)
        return state
