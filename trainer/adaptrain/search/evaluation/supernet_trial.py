"""The trial that trains the network of all cells, in an evaluator, and ranks cells by it."""

import logging
import time
from pathlib import Path

import torch
from adaptrain_api.contracts.coordinator_api import TrialWeights

from adaptrain.data.dataset import DataSet
from adaptrain.data.rng import derive
from adaptrain.errors import InvalidJob
from adaptrain.search.algorithms.oneshot import MOST_RANKED, OneShot, Ranking
from adaptrain.search.evaluation.function_trial import Metrics, Report
from adaptrain.search.oneshot.artifact import Artifact
from adaptrain.search.oneshot.base import Run, Samples
from adaptrain.search.oneshot.darts import DartsRun
from adaptrain.search.oneshot.enas import EnasRun
from adaptrain.search.oneshot.spos import SposRun

log = logging.getLogger(__name__)

RUNS: dict[str, type[Run]] = {"darts": DartsRun, "enas": EnasRun, "spos": SposRun}
"""By the names of their methods."""
SAVING = 0.1
"""Of the time, at most, is spent on saving: after each pass of a large network, after some of a small one."""


def train_supernet(
    searcher: OneShot, data: DataSet, seed: int, device: torch.device, study: Path | None, report: Report
) -> tuple[Metrics, Ranking, TrialWeights | None]:
    """Train the network from where the last one who did so has saved it.

    Args:
        study: the folder to save in; None: whoever does it again begins anew.
        report: called after each pass.

    Returns:
        Figures of the last pass, the ranking of cells, and the artifact (None: it could not be kept, which the log
        tells).

    Raises:
        InvalidJob: the data doesn't fit the network.
    """
    try:
        run = make_run(searcher, data, seed, device)
    except ValueError as error:
        raise InvalidJob(f"algorithm: {error}") from error
    artifact = Artifact(study, run) if study is not None else None
    if artifact is not None:
        artifact.resume()
    figures, kept, saves_at = Metrics(), None, 0.0
    while run.passes < run.method.epochs:
        figures = {f"supernet/{name}": value for name, value in run.advance().items()}
        report(run.passes, figures)
        began = time.monotonic()
        if artifact is not None and began >= saves_at and run.passes < run.method.epochs:
            _save(artifact)
            saves_at = time.monotonic() + (time.monotonic() - began) / SAVING
    if artifact is not None:
        kept = _save(artifact)
    return figures, run.found().ranking[:MOST_RANKED], kept


def make_run(searcher: OneShot, data: DataSet, seed: int, device: torch.device) -> Run:
    """
    Raises:
        ValueError: the data doesn't fit the network.
    """
    method = searcher.method
    return RUNS[method.name](searcher.cells, _samples(data, method.samples, seed, device), data.classes, seed, method)


def _samples(data: DataSet, most: int | None, seed: int, device: torch.device) -> Samples:
    """Of the training set, each a float32."""
    drawn = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(derive(seed, "supernet")))
    x, y = data.train.fetch(drawn[:most].sort().values)
    return x.to(device, torch.float32), y.to(device)


def _save(artifact: Artifact) -> TrialWeights | None:
    try:
        return artifact.write()
    except OSError as error:
        log.warning("the network is not kept: %s: make room on storage.volume", error)
        return None
