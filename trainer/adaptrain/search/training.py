"""A trial that trains: an architecture is trained as a job would train it, by this process alone."""

import contextlib
import logging
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # an optimizer's first step would import it, anew in each child
from adaptrain_api.progress import TrialWeights
from adaptrain_api.search import ArchitectureSearchSpec, metrics_named

from adaptrain.data import DataSet, load_data
from adaptrain.elastic.control import Epochs, Identity
from adaptrain.elastic.device import own_device
from adaptrain.elastic.group import Group
from adaptrain.elastic.sockets import GroupSockets
from adaptrain.elastic.trace import Trace
from adaptrain.elastic.weights import save
from adaptrain.metrics import WorkerMetrics
from adaptrain.models import build_model
from adaptrain.models.cost import count_flops, count_parameters
from adaptrain.phases.supervised import SupervisedTask
from adaptrain.search.energy import measure
from adaptrain.search.kept import FOLDER, file_name, partial_name
from adaptrain.search.resolve import resolve
from adaptrain.search.trial import Metrics, Report

log = logging.getLogger(__name__)

LATENCY_RUNS = 20
LATENCY_WARM_UP = 5


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
        """Whether there is a place for the weights of trials."""
        return self._study is not None

    def begin(self) -> None:
        """In a process that is about to run trials."""
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

    def run(self, given: dict[str, Any], report: Report) -> Metrics:
        """Train what the coordinator gave; ``report`` is called with epochs and metrics.

        Raises:
            InvalidJob: it can't be built or trained as it is, or not be measured here.
        """
        wanted = metrics_named(self._spec)
        energy = measure(own_device()) if "energy" in wanted else None
        with energy or contextlib.nullcontext():
            task, data, device = self._train(given, report)
        self._best = task.state.best
        counters = task.state.counters
        found = {**counters.metrics, **counters.best}
        if (loss := task.report()["loss"]) is not None:
            found["train/loss"] = loss
        if energy is not None:
            found["energy"] = energy.joules
        return found | dict(_costs(task.state.model, data, device, wanted))

    def _train(self, given: dict[str, Any], report: Report) -> tuple[SupervisedTask, DataSet, torch.device]:
        """To its end; returns what was trained, on what, and where."""
        trial, model = resolve(self._spec.trial, given.get("model"), given.get("parameters", {}))
        assert trial.data is not None
        assert trial.phases is not None
        data = self._data if self._data is not None else load_data(trial.data)
        device = own_device()
        task = SupervisedTask(
            trial.phases[0],
            lambda: build_model(model, data).to(device),
            data,
            self._spec.seed,
            WorkerMetrics("", ""),
            Trace(None, ""),
        )
        group = _alone()
        reported = 0
        while not task.finished:
            task.unit(group)
            counters = task.state.counters
            if counters.metrics and counters.evaluated_step > reported:
                reported = counters.evaluated_step
                report(counters.epoch, dict(counters.metrics))
        return task, data, device

    def keep(self, trial: int) -> TrialWeights | None:
        """Write the best weights of the one that was just run; None: they could not be, which the log tells."""
        assert self._study is not None
        folder = self._study / FOLDER
        partial = folder / partial_name(trial, os.getpid())
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


def _costs(
    model: torch.nn.Module, data: DataSet, device: torch.device, wanted: list[str]
) -> Iterator[tuple[str, float]]:
    """Of those that are wanted: parameters, FLOPs of one sample's forward pass, and its median latency, seconds."""
    if "parameters" in wanted:
        yield "parameters", float(count_parameters(model))
    dtype = next(model.parameters()).dtype
    sample = torch.zeros(1, *data.shape, dtype=dtype, device=device)
    model.eval()
    with torch.no_grad():
        if "flops" in wanted:
            yield "flops", float(count_flops(model, sample[0]))
        if "latency" in wanted:
            times = []
            for _ in range(LATENCY_WARM_UP + LATENCY_RUNS):
                began = time.perf_counter()
                model(sample)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                times.append(time.perf_counter() - began)
            yield "latency", statistics.median(times[LATENCY_WARM_UP:])


def _alone() -> Group:
    """A group of one, without any connection."""
    sockets = GroupSockets()
    return Group(Epochs(Identity("alone", "alone", "127.0.0.1", 0), sockets), sockets, 1, 0, 1, None)
