"""``adaptrain run``: a job in local processes, kept at its size, and what it shows of itself."""

import json
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from adaptrain_api.components import mistake
from adaptrain_api.contracts.coordinator_api import EXIT_INVALID, Progress, Result, headline
from adaptrain_api.text import printable
from adaptrain_api.training.checkpoints import checkpoint_uri
from adaptrain_api.training.failures import MOST_STARTS, PodFailurePolicy, error_of
from adaptrain_api.training.job import AdaptiveTrainingJob
from rich.console import Console
from rich.markup import escape

from adaptrain.config.manifest import read_job
from adaptrain.elastic.checkpoint.origin import Origin
from adaptrain.errors import InvalidJob
from adaptrain.local.display import Display, Follow
from adaptrain.local.processes import LocalJob
from adaptrain.process.packages import missing

POLL_SECONDS = 0.25
BACKOFF_SECONDS = 60.0
FORGIVEN_SECONDS = 600.0
"""Failures are forgotten after training went on this long without another."""


class Failed(Exception):
    """The job can't go on."""


@dataclass
class Supervisor:
    """Keeps a local job at its size, by the rules that the operator follows on a cluster."""

    local: LocalJob
    wanted: int
    max_restarts: int
    policy: PodFailurePolicy | None = None
    gpus: list[str] = field(default_factory=list)
    """One for each worker; none: workers see what there is."""
    failures: int = 0
    failure: str = ""
    """The newest failure, in words."""
    _ended: set[int] = field(default_factory=set)
    _not_before: float = 0.0
    _failed_at: float = 0.0
    _trained: bool = False
    """Whether a worker has applied a step."""
    _error: str = ""
    _alike: int = 0
    """How many workers failed in a row with this error before any had trained."""
    _progress: Progress | None = None
    _dismissed: set[int] = field(default_factory=set)
    _gpu_of: dict[int, str] = field(default_factory=dict)

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
        if heard is not None:
            self._trained |= heard.step > 0 or any(member.trained is not False for member in heard.members)
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
                self._start()
        return None

    def _start(self) -> None:
        local = self.local
        taken = {gpu for number, gpu in self._gpu_of.items() if number in local.alive()}
        gpu = next((gpu for gpu in self.gpus if gpu not in taken), None)
        number = local.start_worker(**({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}))
        if gpu is not None:
            self._gpu_of[number] = gpu

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
        action = None if self.policy is None else self.policy.action(code)
        if action == "Ignore":
            return None
        if action == "FailJob":
            raise Failed(f"podFailurePolicy ends the job: exit code {code}: {message}")
        if code == EXIT_INVALID and action is None:
            raise Failed(message)
        if not self._trained and action is None:
            error = error_of(message)
            self._alike = self._alike + 1 if error == self._error else 1
            self._error = error
            if self._alike >= MOST_STARTS:
                raise Failed(
                    f"no worker came so far as to train: {self._alike} in a row failed alike; the last said:\n{message}"
                )
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


def run_manifest(path: Path, workers: int | None, output: Path | None, name: str | None = None) -> int:
    """Train a manifest to its end. Returns the exit code."""
    console = Console()
    job = read_job(path, name)
    wanted = workers if workers is not None else job.spec.workers.wanted
    if wanted < job.spec.workers.min:
        raise InvalidJob(
            f"--workers {wanted} is less than spec.workers.min {job.spec.workers.min}: training would wait"
        )
    if job.spec.script is not None and (lacking := missing(job.spec.script.packages)):
        names = " ".join(lacking)
        raise InvalidJob(
            f"script.packages: {names} can't be imported here: run {sys.executable} -m pip install {names}"
        )
    if (wrong := mistake(job.spec.model)) is not None:
        raise InvalidJob(wrong)
    uri = checkpoint_uri(job.spec.checkpoint, job.metadata.namespace, job.metadata.name)
    if uri is not None and output is not None:
        raise InvalidJob(
            f"--output {output}: this job's checkpoints and model go to spec.checkpoint.uri: leave one out"
        )
    output = output or Path("adaptrain-runs") / job.metadata.name
    if uri is None:
        _own(output, job)
    logs, source, display = new_logs(output), path.parent.absolute(), Display(console)
    gpus = share_gpus(wanted, display)
    if lacking := from_cluster(job):
        display.say(f"what only a cluster has is left out: {', '.join(lacking)}; set it in your shell if it is needed")
    display.say(f"starting {_count(wanted, 'worker')}; their logs are in {logs}")
    try:
        with LocalJob(job, checkpoints=output.absolute(), source=source, logs=logs.absolute()) as local:
            result = _watch(
                local, Supervisor(local, wanted, job.spec.max_restarts, job.spec.pod_failure_policy, gpus), display, job
            )
    except Failed as error:
        console.print(f"[red]Failed[/red]: {escape(printable(str(error)))}", highlight=False, soft_wrap=True)
        console.print(f"the workers' logs are in {logs}", highlight=False, soft_wrap=True)
        return 1
    for metric, value in sorted(result.metrics.items()):
        console.print(f"{metric:>20} {value:.4f}", highlight=False)
    ended = f", {escape(result.message)}" if result.message else ""
    if job.spec.torchrun:
        where = f"what the script saved is where it wrote it: its folder is {source}, ADAPTRAIN_CHECKPOINT_DIR {output}"
        console.print(f"[green]Succeeded[/green]{ended}; {where}", highlight=False, soft_wrap=True)
        return 0
    model = "it left no model" if result.model is None else f"the model is {uri or output}/{result.model}"
    told = f"[green]Succeeded[/green] at step {result.step}{ended}; {model}"
    console.print(told, highlight=False, soft_wrap=True)
    return 0


def new_logs(output: Path) -> Path:
    """The folder for the logs of one run, named by the time of its start."""
    logs = output / "logs" / time.strftime("%Y%m%d-%H%M%S")
    logs.mkdir(parents=True, exist_ok=True)
    return logs


def from_cluster(job: AdaptiveTrainingJob) -> list[str]:
    """Fields of ``workers.env`` and ``envFrom`` whose values no local worker gets."""
    workers = job.spec.workers
    lacking = [
        f"workers.env {variable.name}"
        for variable in workers.env
        if variable.value_from is not None and variable.name not in os.environ
    ]
    for origin in workers.env_from:
        named = origin.secret_ref or origin.config_map_ref
        lacking += [] if named is None else [f"workers.envFrom {named.name}"]
    return lacking


def share_gpus(workers: int, display: Display) -> list[str]:
    """One GPU of this machine for each worker; none, if there are fewer: NCCL takes no two processes on one GPU.

    An empty list: a single worker, or there is no GPU; workers see what there is.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = [str(n) for n in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))] if named is None else named.split(",")
    gpus = [gpu for gpu in found if gpu.strip()]
    if workers <= 1 or not gpus:
        return []
    if workers > len(gpus):
        display.say(
            f"{workers} workers train on CPUs, since there {_are(len(gpus))}: use --workers {len(gpus)} for GPUs"
        )
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return []
    return gpus


def _are(gpus: int) -> str:
    return f"is {_count(gpus, 'GPU')}" if gpus == 1 else f"are {_count(gpus, 'GPU')}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _watch(local: LocalJob, keeper: Supervisor, display: Display, job: AdaptiveTrainingJob) -> Result:
    began = time.monotonic()
    follow = Follow(display.say) if job.spec.script is not None else None
    with display.open():
        try:
            while True:
                result = keeper.keep()
                if follow is not None:
                    _hand_on(local, follow)
                if result is not None:
                    return result
                p = keeper.progress
                troubles = [words for words in (keeper.failure, p.checkpoint_error if p else None) if words]
                display.show(p, _line(job, keeper, time.monotonic() - began), troubles)
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            display.say("leaving at the step's end; run the same command again to resume")
            terminate_workers(local, job.spec.workers.termination_grace_period_seconds)
            raise
        except Failed:
            if follow is not None:
                _hand_on(local, follow)
            raise


def _hand_on(local: LocalJob, follow: Follow) -> None:
    """What the first worker that runs writes, or the last one to run."""
    if local.workers:
        first = min(local.alive(), default=max(local.workers))
        follow.look(local.logs / f"worker-{first}.log")


def terminate_workers(local: LocalJob, grace: float) -> None:
    """Ask all workers to leave; ``grace`` is how many seconds each has."""
    for number in local.alive():
        local.signal(number, signal.SIGTERM)
    for process in local.workers.values():
        process.join(timeout=grace)


def _line(job: AdaptiveTrainingJob, keeper: Supervisor, elapsed: float) -> str:
    """The state in one line, which wraps where the terminal ends."""
    p = keeper.progress
    members = len(p.members) if p is not None else 0
    parts = [f"{job.metadata.name}: {members}/{keeper.wanted} workers"]
    if not members:
        parts[0] += ", starting"
    elif p is not None and not job.spec.torchrun:
        parts += [f"epoch {p.data_epoch}", f"step {p.step}"]
        if p.loss is not None:
            parts.append(f"loss {p.loss:.4f}")
        if (metric := headline(p.metrics)) is not None:
            parts.append(f"{metric}={p.metrics[metric]:.4f}")
        if p.samples_per_second is not None:
            parts.append(f"{p.samples_per_second:.0f} samples/s")
        if p.eta_seconds is not None:
            parts.append(f"≤ {p.eta_seconds:.0f} s left")
    return ", ".join([*parts, f"{elapsed:.0f} s"])


def _own(output: Path, job: AdaptiveTrainingJob) -> None:
    """Make sure that a directory with progress is of the same training, for however long that may go on."""
    output.mkdir(parents=True, exist_ok=True)
    origin, note = Origin.of(job), output / "job.json"
    if note.exists() and origin.resume_from is None:
        difference = origin.differs({"made": json.loads(note.read_text())})
        if difference is not None:
            raise InvalidJob(
                f"{output} holds the progress of another training: {difference}; choose another --output, remove it, or"
                " name one of its checkpoints in checkpoint.resumeFrom"
            )
    note.write_text(json.dumps(origin.made, indent=2))
