"""``adaptrain search run``: a search in local processes, and what it shows of itself."""

import time
from pathlib import Path

from adaptrain_api.contracts.coordinator_api import Progress, TrialResult
from adaptrain_api.search.job import ArchitectureSearch, Parallelism, metrics_named
from adaptrain_api.search.pool import pool
from adaptrain_api.text import printable
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from adaptrain.config.manifest import read_search
from adaptrain.errors import InvalidJob
from adaptrain.local.display import Display
from adaptrain.local.processes import LocalJob
from adaptrain.local.run import POLL_SECONDS, Failed, Supervisor, new_logs, share_gpus, terminate_workers
from adaptrain.search.algorithms.registry import make_algorithm
from adaptrain.search.evaluation.parameters import check
from adaptrain.search.spaces.registry import make_space

SHOWN = 5
GRACE_SECONDS = 5.0


def run_search(path: Path, evaluators: int | None, output: Path | None, name: str | None = None) -> int:
    """Search to the budget's end. Returns the exit code."""
    console = Console()
    search = read_search(path, name)
    wanted = evaluators if evaluators is not None else max(1, search.spec.parallelism.max)
    if wanted < 1:
        raise InvalidJob(f"--evaluators {wanted}: at least one is needed")
    search = _local(search, wanted, console)
    if search.spec.storage is not None and search.spec.storage.postgresql is not None:
        raise InvalidJob("spec.storage.postgresql is a cluster's Secret: leave storage out; the study goes to --output")
    check(search.spec)
    # Here nobody else would tell what the coordinator says of wrong arguments.
    make_algorithm(search.spec, make_space(search.spec.space))
    output = output or Path("adaptrain-runs") / search.metadata.name
    output.mkdir(parents=True, exist_ok=True)
    job, logs, display = pool(search), new_logs(output), Display(console)
    gpus = share_gpus(wanted, display)
    display.say(f"starting {wanted} evaluators; their logs are in {logs}")
    source = path.parent.absolute()
    try:
        with LocalJob(job, checkpoints=output.absolute(), source=source, logs=logs.absolute()) as local:
            progress = _watch(local, Supervisor(local, wanted, job.spec.max_restarts, gpus=gpus), display, search)
    except Failed as error:
        told = escape(printable(str(error)))
        console.print(f"[red]Failed[/red]: {told}; logs are in {logs}", highlight=False, soft_wrap=True)
        return 1
    assert progress.search is not None
    assert progress.search.end is not None
    end, top = progress.search.end, progress.search.top
    if end.outcome == "failed":
        console.print(f"[red]Failed[/red]: {escape(printable(end.message))}", highlight=False, soft_wrap=True)
        return 1
    console.print(_best(search, top))
    if progress.search.unread:
        console.print(f"[yellow]Warning[/yellow]: {progress.search.unread}", highlight=False, soft_wrap=True)
    if top[0].weights is not None:
        kept = f"{output / top[0].weights.path} (sha256 {top[0].weights.sha256})"
        console.print(f"the weights of trial {top[0].trial}: {kept}", highlight=False, soft_wrap=True)
    elif search.spec.trial.callable is None:
        console.print(f"[yellow]Warning[/yellow]: trial {top[0].trial} left no weights: was there room in {output}?")
    console.print(f"[green]Succeeded[/green]: {end.message}; the study is in {output}", highlight=False)
    return 0


def _local(search: ArchitectureSearch, evaluators: int, console: Console) -> ArchitectureSearch:
    """What of it this machine can do, with so many evaluators: trials that are jobs on a cluster run in those, one
    process each."""
    spec = search.spec.model_copy(update={"parallelism": Parallelism(max=evaluators)})
    if spec.execution == "Jobs":
        console.print("execution Jobs needs a cluster: here each trial runs in one process of an evaluator")
        trial = spec.trial.model_copy(update={"workers": None, "checkpoint": None})
        spec = spec.model_copy(update={"execution": "Pool", "trial": trial})
    return search.model_copy(update={"spec": spec})


def _watch(local: LocalJob, keeper: Supervisor, display: Display, search: ArchitectureSearch) -> Progress:
    began = time.monotonic()
    with display.open():
        try:
            while True:
                keeper.keep()
                progress = keeper.progress
                found = progress.search if progress is not None else None
                troubles = [words for words in (found.supernet if found else None, keeper.failure) if words]
                display.show(progress, _line(search, keeper, time.monotonic() - began), troubles)
                if progress is not None and found is not None and found.end is not None:
                    return progress
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            display.say("leaving; run the same command again to resume")
            terminate_workers(local, GRACE_SECONDS)
            raise


def _line(search: ArchitectureSearch, keeper: Supervisor, elapsed: float) -> str:
    """The state in one line, which wraps where the terminal ends."""
    progress = keeper.progress
    found = progress.search if progress is not None else None
    members = len(progress.members) if progress is not None else 0
    parts = [f"{search.metadata.name}: {members}/{keeper.size} evaluators" + ("" if members else ", starting")]
    if progress is not None and found is not None:
        budget = search.spec.budget.trials
        ended = found.complete + found.pruned + found.failed
        parts.append(f"{ended}/{budget} trials" if budget is not None else f"{ended} trials")
        if found.failed:
            parts.append(f"{found.failed} failed")
        metric = search.spec.objectives[0].metric
        if found.top and (best := found.top[0].metrics.get(metric)) is not None:
            parts.append(f"best {metric}={best:.4g}")
        if len(search.spec.objectives) > 1:
            parts.append(f"{found.pareto_size} Pareto-optimal")
        parts.append(f"{found.per_minute:.1f} trials/min")
        if progress.eta_seconds is not None:
            parts.append(f"≤ {progress.eta_seconds:.0f} s left")
    return ", ".join([*parts, f"{elapsed:.0f} s"])


def _best(search: ArchitectureSearch, top: list[TrialResult]) -> Table:
    metrics = metrics_named(search.spec)
    table = Table("trial", *metrics, "architecture")
    for one in top[:SHOWN]:
        values = [f"{one.metrics[metric]:.6g}" for metric in metrics]
        table.add_row(str(one.trial), *values, one.choices)
    return table
