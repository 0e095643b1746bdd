"""Searches in local processes, for tests and benchmarks."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from adaptrain.local.processes import LocalJob
from adaptrain.local.run import Supervisor
from adaptrain.search.study.study import JOURNAL
from adaptrain_api.contracts.coordinator_api import SearchProgress
from adaptrain_api.search.job import ArchitectureSearch
from adaptrain_api.search.pool import pool

optuna.logging.set_verbosity(optuna.logging.WARNING)


def search(name: str = "search", choices: int = 6, **spec: Any) -> ArchitectureSearch:
    """Over choices of 0 to 3, scored by a function of the tests."""
    parameters = [{"name": f"c{n}", "values": [0, 1, 2, 3]} for n in range(choices)]
    base: dict[str, Any] = {
        "space": {"parameters": parameters},
        "objectives": [{"metric": "score", "goal": "maximize"}],
        "algorithm": {"name": "evolution"},
        "budget": {"trials": 40},
        "parallelism": {"max": 2},
        "trial": {"callable": "tests.e2e.searched:score"},
    }
    manifest = {
        "apiVersion": "adaptrain.io/v1alpha1",
        "kind": "ArchitectureSearch",
        "metadata": {"name": name},
        "spec": base | spec,
    }
    return ArchitectureSearch.model_validate(manifest)


@contextmanager
def running(one: ArchitectureSearch, folder: Path) -> Iterator[tuple[LocalJob, Supervisor]]:
    """Its processes, kept by the rules of the operator as long as somebody calls ``keep``."""
    job = pool(one)
    with LocalJob(job, checkpoints=folder) as local:
        yield local, Supervisor(local, job.spec.workers.wanted, job.spec.max_restarts)


def ended(keeper: Supervisor, disturb: Callable[[int], None] | None = None, seconds: float = 180) -> SearchProgress:
    """Keep a search going until it has ended; ``disturb`` is called with the number of trials that did."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        keeper.keep()
        progress = keeper.progress
        if progress is not None and progress.search is not None:
            if progress.search.end is not None:
                return progress.search
            if disturb is not None:
                disturb(progress.step)
        time.sleep(0.05)
    raise AssertionError(f"the search has not ended: {keeper.progress}")


def told(folder: Path) -> list[optuna.trial.FrozenTrial]:
    """The study's trials, as Optuna reads them."""
    backend = optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL))
    (study,) = optuna.get_all_study_summaries(optuna.storages.JournalStorage(backend))
    loaded = optuna.load_study(study_name=study.study_name, storage=optuna.storages.JournalStorage(backend))
    return loaded.trials


def numbers(trials: list[optuna.trial.FrozenTrial]) -> list[int]:
    """Of trials, as they were given out."""
    return [trial.user_attrs["trial"] for trial in trials]
