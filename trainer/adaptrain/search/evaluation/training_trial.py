"""A trial that trains: an architecture is trained as a job would train it, by this process alone."""

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # an optimizer's first step would import it, anew in each child
from adaptrain_api.contracts.coordinator_api import TrialWeights
from adaptrain_api.search.job import ArchitectureSearchSpec

from adaptrain.data.registry import load_data
from adaptrain.elastic.collectives.device import own_device
from adaptrain.elastic.replica.base import Replica
from adaptrain.elastic.state.sample_log import SampleLog
from adaptrain.elastic.storage.weights import save
from adaptrain.models.registry import build_model
from adaptrain.observability.metrics import WorkerMetrics
from adaptrain.phases.sequence import PhaseSequence
from adaptrain.search.algorithms.oneshot import OneShot
from adaptrain.search.algorithms.registry import make_algorithm
from adaptrain.search.evaluation.cost_metrics import costs, needs_training, proxies, wanted
from adaptrain.search.evaluation.energy import measure
from adaptrain.search.evaluation.function_trial import Metrics, Report
from adaptrain.search.evaluation.parameters import resolve
from adaptrain.search.evaluation.supernet_trial import train_supernet
from adaptrain.search.spaces.registry import make_space
from adaptrain.search.study.weights_retention import FOLDER, file_name, partial_name

log = logging.getLogger(__name__)


class Training:
    """What trials that train share, loaded once.

    Args:
        study: the folder of the study, for the weights of the trials; None: they are not kept.

    Raises:
        InvalidJob: there is no such data set.
    """

    def __init__(self, spec: ArchitectureSearchSpec, study: Path | None) -> None:
        torch.set_num_threads(1)  # a pool of threads would not survive the fork
        assert spec.trial.data is not None
        chosen = any(one.name.split(".")[0] == "data" for one in spec.space.parameters)
        self._spec = spec
        self._study = study
        self._best: dict[str, torch.Tensor] = {}
        self.left: dict[str, Any] = {}
        """The ranking and the weights of the network that all share, if that was just run."""
        self._data = None if chosen else load_data(spec.trial.data)

    @property
    def unread(self) -> list[str]:
        """None: a parameter that a trial has no place for is refused before the first."""
        return []

    @property
    def reusable(self) -> bool:
        """Whether a process should run more than one trial: a GPU's driver takes seconds to start."""
        return torch.cuda.is_available()

    @property
    def keeps(self) -> bool:
        """Whether there is a place for the weights of trials, and the one that was just run has some."""
        return self._study is not None and bool(self._best)

    def begin(self) -> None:
        """In a process that is about to run trials."""
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

    def run(self, given: dict[str, Any], report: Report) -> Metrics:
        """Train what the coordinator gave, which may be the network that all architectures share; ``report`` is called
        with epochs and metrics.

        If all that is wanted of a model can be measured without training, it isn't trained.

        Raises:
            InvalidJob: it can't be built or trained as it is, or not be measured here.
        """
        self.left, self._best = {}, {}
        if "supernet" in given:
            return self._train_supernet(report)
        trial, model = resolve(self._spec.trial, given.get("model"), given.get("parameters", {}))
        assert trial.data is not None
        assert trial.phases is not None
        data = self._data if self._data is not None else load_data(trial.data)
        device = own_device()
        task = PhaseSequence(
            trial.phases,
            lambda: build_model(model, data).to(device),
            data,
            self._spec.seed,
            WorkerMetrics("", ""),
            SampleLog(None, ""),
        )
        names = wanted(self._spec)
        found = proxies(task.state.model, data, self._spec.seed, names)
        energy = measure(device) if "energy" in names else None
        if needs_training(self._spec):
            with energy or contextlib.nullcontext():
                found |= _train(task, report)
            self._best = task.state.best
        if energy is not None:
            found["energy"] = energy.joules
        return found | dict(costs(task.state.model, data, names))

    def _train_supernet(self, report: Report) -> Metrics:
        spec, data = self._spec, self._data
        searcher = make_algorithm(spec, make_space(spec.space))
        assert isinstance(searcher, OneShot)
        assert data is not None
        metrics, ranking, weights = train_supernet(searcher, data, spec.seed, own_device(), self._study, report)
        self.left = {"ranking": ranking} | ({} if weights is None else {"weights": weights.model_dump()})
        return metrics

    def keep(self, trial: int) -> TrialWeights | None:
        """Write the best weights of the one that was just run; None: they could not be, which the log tells."""
        assert self._study is not None
        folder = self._study / FOLDER
        partial = folder / partial_name(trial)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                found = save(self._best, partial)
                name = file_name(trial, found)
                partial.rename(folder / name)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            log.warning("the weights of trial %d are not kept: %s: make room on storage.volume", trial, error)
            return None
        return TrialWeights(path=f"{FOLDER}/{name}", sha256=found)


def _train(task: PhaseSequence, report: Report) -> Metrics:
    """To its end. Returns the best epoch's metrics, and the last ones of what has no best."""
    group = Replica().alone()
    reported = 0
    while not task.finished:
        task.unit(group)
        counters = task.state.counters
        if counters.metrics and counters.evaluated_step > reported:
            reported = counters.evaluated_step
            report(counters.passes, dict(counters.metrics))
    counters = task.state.counters
    found = {**counters.metrics, **counters.best}
    if (loss := task.report()["loss"]) is not None:
        found["train/loss"] = loss
    return found
