"""``adaptrain run``: a job in local processes, kept at its size, with a table that shows how it goes."""

import json
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from adaptrain_api.checkpoints import checkpoint_uri
from adaptrain_api.progress import EXIT_INVALID, Progress, Result, headline
from adaptrain_api.training import AdaptiveTrainingJob, dump
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from adaptrain.errors import InvalidJob
from adaptrain.local import LocalJob
from adaptrain.manifest import read_job

POLL_SECONDS = 0.25
BACKOFF_SECONDS = 60.0
FORGIVEN_SECONDS = 600.0
"""Failures are forgotten after training went on this long without another."""


class Failed(Exception):
    """The job can't go on."""


@dataclass
class Keeper:
    """Keeps a local job at its size, by the rules that the operator follows on a cluster."""

    local: LocalJob
    wanted: int
    max_restarts: int
    failures: int = 0
    failure: str = ""
    """The newest failure, in words."""
    _ended: set[int] = field(default_factory=set)
    _not_before: float = 0.0
    _failed_at: float = 0.0
    _progress: Progress | None = None
    _dismissed: set[int] = field(default_factory=set)

    @property
    def size(self) -> int:
        """Workers that there shall be now: evaluators that would find nothing to try aren't kept."""
        search = self._progress.search if self._progress is not None else None
        if search is None or search.evaluators is None:
            return self.wanted
        return min(self.wanted, max(1, search.evaluators))

    def keep(self) -> Result | None:
        """Look once; replace what is lost. Returns the result when training is complete.

        Raises:
            Failed: a worker can't run this job, or workers failed too often.
        """
        local, now = self.local, time.monotonic()
        if local.coordinator is None or local.coordinator.poll() is not None:
            local.start_coordinator()
        heard = local.progress()
        self._progress = heard or self._progress
        if self._progress is not None and self._progress.result is not None:
            # What a script does after training is its own affair: its failure doesn't begin training anew.
            return self._progress.result if not local.alive() else None
        for number, process in local.workers.items():
            code = process.exitcode
            if code is not None and number not in self._ended:
                self._ended.add(number)
                if (result := self._judge(number, code, now)) is not None:
                    return result
        for silent in self._progress.silent if self._progress else []:
            if (number := int(silent.id)) in local.alive():
                local.signal(number, signal.SIGKILL)
        staying = [number for number in local.alive() if number not in self._dismissed]
        idle = {int(member.id) for member in (heard.members if heard is not None else []) if member.idle}
        leaving = [number for number in reversed(staying) if number in idle][: max(0, len(staying) - self.size)]
        for number in leaving:
            self._dismissed.add(number)
            local.signal(number, signal.SIGTERM)
        if now >= self._not_before:
            for _ in range(self.size - len(staying)):
                local.start_worker()
        return None

    @property
    def progress(self) -> Progress | None:
        return self._progress

    def _judge(self, number: int, code: int, now: float) -> Result | None:
        result = self.local.result(number)
        if code == 0 and result is not None and result.outcome == "completed":
            return result
        if code < 0 or (code == 0 and result is not None):  # killed from outside, or left when asked to: not counted
            return None
        if result is not None:
            message = result.message
        elif code == 0:
            message = "it exited with 0 but left no result: a script trains in `with adaptrain.elastic.Elastic(…)`"
        else:
            message = self.local.log(f"worker-{number}")[-2000:]
        if code == EXIT_INVALID:
            raise Failed(message)
        if now - self._failed_at > FORGIVEN_SECONDS:
            self.failures = 0
        self.failures += 1
        self._failed_at = now
        if self.failures > self.max_restarts:
            raise Failed(
                f"workers failed {self.failures} times (maxRestarts is {self.max_restarts}); the last said:\n{message}"
            )
        pause = min(BACKOFF_SECONDS, 2.0 ** (self.failures - 1))
        self.failure = (
            f"worker-{number} failed ({self.failures} of at most {self.max_restarts}), another one starts in"
            f" {pause:.0f} s: {message.strip().splitlines()[-1] if message.strip() else f'exit code {code}'}"
        )
        self._not_before = now + pause
        return None


def run_manifest(path: Path, workers: int | None, output: Path | None) -> int:
    """Train a manifest to its end. Returns the exit code."""
    console = Console()
    job = read_job(path)
    wanted = workers if workers is not None else job.spec.workers.wanted
    if wanted < job.spec.workers.min:
        raise InvalidJob(
            f"--workers {wanted} is less than spec.workers.min {job.spec.workers.min}: training would wait"
        )
    uri = checkpoint_uri(job.spec.checkpoint, job.metadata.namespace, job.metadata.name)
    if uri is not None and output is not None:
        raise InvalidJob(
            f"--output {output}: this job's checkpoints and model go to spec.checkpoint.uri: leave one out"
        )
    output = output or Path("adaptrain-runs") / job.metadata.name
    if uri is None:
        _own(output, job)
    if wanted > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # NCCL takes no two processes on one GPU
    try:
        with LocalJob(job, checkpoints=output.absolute(), source=path.parent.absolute()) as local:
            result = _watch(local, Keeper(local, wanted, job.spec.max_restarts), console, job)
    except Failed as error:
        console.print(f"[red]Failed[/red]: {error}", highlight=False)
        return 1
    for metric, value in sorted(result.metrics.items()):
        console.print(f"{metric:>20} {value:.4f}", highlight=False)
    if job.spec.torchrun:
        console.print(f"[green]Succeeded[/green], {result.message}; what it saved is in {output}")
        return 0
    model = f"{uri or output}/{result.model}"
    console.print(f"[green]Succeeded[/green] at step {result.step}, {result.message}; the model is {model}")
    return 0


def _watch(local: LocalJob, keeper: Keeper, console: Console, job: AdaptiveTrainingJob) -> Result:
    began = time.monotonic()
    with Live(console=console, refresh_per_second=4, transient=False) as live:
        try:
            while (result := keeper.keep()) is None:
                live.update(_table(job, keeper, time.monotonic() - began))
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            console.print("leaving at the step's end; run the same command again to resume")
            dismiss(local, job.spec.workers.termination_grace_period_seconds)
            raise
        return result


def dismiss(local: LocalJob, grace: float) -> None:
    """Ask all workers to leave; ``grace`` is how many seconds each has."""
    for number in local.alive():
        local.signal(number, signal.SIGTERM)
    for process in local.workers.values():
        process.join(timeout=grace)


def _table(job: AdaptiveTrainingJob, keeper: Keeper, elapsed: float) -> Group:
    p = keeper.progress
    table = Table("job", "workers", "epoch", "step", "loss", "metric", "samples/s", "ETA", "elapsed")

    def show(value: float | None, format: str) -> str:
        return "" if value is None else f"{value:{format}}"

    table.add_row(
        job.metadata.name,
        f"{len(p.members) if p else 0}/{keeper.wanted}",
        str(p.data_epoch) if p else "",
        str(p.step) if p else "",
        show(p.loss if p else None, ".4f"),
        f"{metric}={p.metrics[metric]:.4f}" if p and (metric := headline(p.metrics)) is not None else "",
        show(p.samples_per_second if p else None, ".0f"),
        f"≤ {show(p.eta_seconds, '.0f')} s" if p and p.eta_seconds is not None else "",
        f"{elapsed:.0f} s",
    )
    changes = [
        f"  {time.strftime('%H:%M:%S', time.localtime(c.time))} {c.message}"
        + (f" (stall {c.stall * 1e3:.0f} ms)" if c.stall is not None else "")
        for c in (p.recent_changes[-4:] if p else [])
    ]
    troubles = [f"  {trouble}" for trouble in (keeper.failure, p.checkpoint_error if p else None) if trouble]
    return Group(table, *changes, *troubles)


def _own(output: Path, job: AdaptiveTrainingJob) -> None:
    """Make sure that a directory with progress belongs to this very job."""
    output.mkdir(parents=True, exist_ok=True)
    spec = dump(job.spec)
    identity = {field: spec.get(field) for field in ("model", "data", "phases", "script", "seed")}
    note = output / "job.json"
    if not note.exists():
        note.write_text(json.dumps(identity, indent=2))
        return
    before = json.loads(note.read_text())
    changed = [field for field in identity if before.get(field) != identity[field]]
    if changed:
        raise InvalidJob(
            f"{output} holds the progress of a job with another {', '.join(changed)}:"
            " choose another --output, or remove it"
        )
