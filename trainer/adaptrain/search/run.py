"""``adaptrain search run``: a search in local processes, with a table that shows how it goes."""

import time
from pathlib import Path

from adaptrain_api.pool import pool
from adaptrain_api.progress import Progress, TrialResult
from adaptrain_api.search import ArchitectureSearch, Parallelism, metrics_named
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from adaptrain.errors import InvalidJob
from adaptrain.local import LocalJob
from adaptrain.manifest import read_search
from adaptrain.run import POLL_SECONDS, Failed, Keeper, dismiss
from adaptrain.search.algorithms.registry import make_algorithm
from adaptrain.search.resolve import check
from adaptrain.search.spaces.registry import make_space

SHOWN = 5
GRACE_SECONDS = 5.0


def run_search(path: Path, evaluators: int | None, output: Path | None) -> int:
    """Search to the budget's end. Returns the exit code."""
    console = Console()
    search = read_search(path)
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
    job = pool(search)
    try:
        with LocalJob(job, checkpoints=output.absolute(), source=path.parent.absolute()) as local:
            progress = _watch(local, Keeper(local, wanted, job.spec.max_restarts), console, search)
    except Failed as error:
        console.print(f"[red]Failed[/red]: {error}", highlight=False)
        return 1
    assert progress.search is not None
    assert progress.search.end is not None
    end, top = progress.search.end, progress.search.top
    if end.outcome == "failed":
        console.print(f"[red]Failed[/red]: {end.message}", highlight=False)
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


def _watch(local: LocalJob, keeper: Keeper, console: Console, search: ArchitectureSearch) -> Progress:
    began = time.monotonic()
    with Live(console=console, refresh_per_second=4) as live:
        try:
            while True:
                keeper.keep()
                progress = keeper.progress
                live.update(_table(search, keeper, time.monotonic() - began))
                if progress is not None and progress.search is not None and progress.search.end is not None:
                    return progress
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            console.print("leaving; run the same command again to resume")
            dismiss(local, GRACE_SECONDS)
            raise


def _table(search: ArchitectureSearch, keeper: Keeper, elapsed: float) -> Group:
    table = Table("search", "evaluators", "trials", "failed", "best", "Pareto", "trials/min", "ETA", "elapsed")
    progress = keeper.progress
    found = progress.search if progress is not None else None
    budget = search.spec.budget.trials
    metric = search.spec.objectives[0].metric
    best = found.top[0].metrics.get(metric) if found is not None and found.top else None
    ended = found.complete + found.pruned + found.failed if found is not None else 0
    table.add_row(
        search.metadata.name,
        f"{len(progress.members) if progress else 0}/{keeper.size}",
        f"{ended}/{budget}" if budget is not None else str(ended),
        str(found.failed) if found is not None else "",
        "" if best is None else f"{metric}={best:.4g}",
        str(found.pareto_size) if found is not None else "",
        f"{found.per_minute:.1f}" if found is not None else "",
        "" if progress is None or progress.eta_seconds is None else f"{progress.eta_seconds:.0f}s",
        f"{elapsed:.0f}s",
    )
    supernet = found.supernet if found is not None else None
    return Group(table, *(words for words in (supernet, keeper.failure) if words))


def _best(search: ArchitectureSearch, top: list[TrialResult]) -> Table:
    metrics = metrics_named(search.spec)
    table = Table("trial", *metrics, "architecture")
    for one in top[:SHOWN]:
        values = [f"{one.metrics[metric]:.6g}" for metric in metrics]
        table.add_row(str(one.trial), *values, one.choices)
    return table
