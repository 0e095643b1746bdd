"""Trials that are jobs: which are made, suspended and removed, and what their search's coordinator is told of them.

The coordinator orders trials and says which jobs are of no more use; it is told of all jobs each time. So whoever is
killed when, a trial's job is found by its name, and none is removed before what it found is written.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from adaptrain_api.contracts.coordinator_api import Progress, TrialOrder, TrialReport, TrialReports
from adaptrain_api.search.job import TRIAL_DIGITS
from adaptrain_api.search.space import set_parameter
from adaptrain_api.training.job import TrainingJobSpec, dump
from adaptrain_api.training.status import TrainingJobStatus
from pydantic import ValidationError

from adaptrain_operator.core import naming
from adaptrain_operator.core.objects.ownership import LEAVING
from adaptrain_operator.core.observed import Object
from adaptrain_operator.core.plan import Deletion
from adaptrain_operator.core.search.observed import (
    Search,
    SearchObserved,
    claimed,
    condition_of,
    job_of,
    own,
    status_of,
    stranger,
)
from adaptrain_operator.core.text import first_problem

BEST = "best/"
"""How a job's result marks the metrics of its best epoch."""


@dataclass(slots=True)
class TrialsPlan:
    """What to do for all trials of a search."""

    apply: list[Object] = field(default_factory=list)
    delete: list[Deletion] = field(default_factory=list)
    reports: TrialReports = field(default_factory=TrialReports)
    failed: list[TrialReport] = field(default_factory=list)
    """Those that have failed, and whose jobs are removed now, or can't be made."""
    running: int = 0
    """Jobs whose workers train."""
    problem: tuple[str, str] | None = None
    """What keeps a job's workers from it: the reason, in a word and in a sentence."""


def decide_trials(search: Search, seen: SearchObserved) -> TrialsPlan:
    """What to do, given everything that was seen. Idempotent."""
    plan, progress = TrialsPlan(), seen.progress
    room = 0 if search.spec.suspend else search.spec.parallelism.max
    done = set() if progress is None else set(progress.done)
    jobs = dict(_jobs(search, seen))
    for number, job in jobs.items():
        report = _report(number, job, seen.trials.get(job["metadata"]["name"]))
        if report.job in done:
            _remove(plan, job, report)
            continue
        plan.reports.trials.append(report)
        if report.state != "running":
            continue
        suspend = room <= 0
        room -= 1
        if bool(job["spec"].get("suspend")) != suspend:
            plan.apply.append(_marked(search, number, report.given, {**job["spec"], "suspend": suspend}))
        _look(plan, number, job, suspend)
    for order in [] if progress is None else progress.orders:
        if order.number in jobs or room <= 0:
            continue
        if claimed(search, there := seen.jobs.get(search.trial(order.number))):
            assert there is not None
            plan.delete.append(Deletion(there["metadata"]["name"], there["metadata"]["uid"]))
            continue
        taken = stranger(search, there)
        if taken is not None and taken[0] == LEAVING:
            plan.problem = plan.problem or taken
            continue
        made = _make(search, seen, order)
        if isinstance(made, str):
            report = TrialReport(number=order.number, given=order.given, state="failed", message=made)
            plan.reports.trials.append(report)
            # An order that is not new was answered already, perhaps.
            plan.failed += [report] if seen.current else []
        else:
            room -= 1
            plan.apply.append(made)
    return plan


def remove_trials(search: Search, seen: SearchObserved) -> TrialsPlan:
    """The search needs none any more."""
    plan = TrialsPlan()
    for number, job in _jobs(search, seen):
        _remove(plan, job, _report(number, job, None))
    return plan


def _jobs(search: Search, seen: SearchObserved) -> Iterator[tuple[int, Object]]:
    """Its trials' jobs, by number: the oldest first, which have come the furthest."""
    numbered = [(search.number(name), own(search, seen.jobs.get(name))) for name in search.record]
    found = [(number, job) for number, job in numbered if number is not None and job is not None]
    yield from sorted(found, key=lambda one: one[0])


def _remove(plan: TrialsPlan, job: Object, report: TrialReport) -> None:
    """Once: of one that is being deleted, all was said when that was asked for."""
    meta = job["metadata"]
    if "deletionTimestamp" in meta:
        return
    plan.delete.append(Deletion(meta["name"], meta["uid"]))
    plan.failed += [report] if report.state == "failed" else []


def _look(plan: TrialsPlan, number: int, job: Object, suspend: bool) -> None:
    if status_of(job).phase == "Running":
        plan.running += 1
    ready = condition_of(job, "PodsReady")
    if plan.problem is None and not suspend and ready is not None and ready.status == "False":
        plan.problem = ready.reason, f"trial {number}: {ready.message}"


def _report(number: int, job: Object, progress: Progress | None) -> TrialReport:
    status, failed, complete = status_of(job), condition_of(job, "Failed"), condition_of(job, "Complete")
    report = TrialReport(
        number=number,
        given=_given(number, job),
        job=job["metadata"]["uid"],
        started=None if status.start_time is None else status.start_time.timestamp(),
    )
    if complete is not None and complete.status == "True":
        return report.model_copy(update={"state": "complete", "metrics": _found(status)})
    if failed is not None and failed.status == "True":
        return report.model_copy(update={"state": "failed", "message": failed.message})
    # A job of the same name may have been there before it: only the coordinator that its own status names speaks of it.
    if progress is not None and progress.metrics and progress.number == status.coordinator:
        return report.model_copy(update={"step": _passes(progress), "metrics": progress.metrics})
    return report


def _passes(progress: Progress) -> int:
    """Passes over the training set that are complete, of all phases."""
    return progress.data_epoch + sum(phase.epochs for phase in progress.phases if phase.state == "complete")


def _given(number: int, job: Object) -> dict[str, Any]:
    """What the coordinator gave for it; nothing, if somebody changed that."""
    try:
        found = json.loads((job["metadata"].get("annotations") or {}).get(naming.GIVEN, ""))
        return TrialOrder(number=number, given=found).given
    except (ValueError, RecursionError):
        return {}


def _found(status: TrainingJobStatus) -> dict[str, float]:
    """A job's metrics as an evaluator would tell them: those of the best epoch go before the last one's."""
    best = {name.removeprefix(BEST): value for name, value in status.metrics.items() if name.startswith(BEST)}
    last = {name: value for name, value in status.metrics.items() if not name.startswith(BEST)}
    loss = {} if status.loss is None else {"train/loss": status.loss}
    return loss | last | best


def _make(search: Search, seen: SearchObserved, order: TrialOrder) -> Object | str:
    """A trial's job, or why there can be none."""
    name = search.trial(order.number)
    if name in seen.refused:
        return seen.refused[name]
    if (taken := stranger(search, seen.jobs.get(name))) is not None:
        return taken[1]
    if len(str(order.number)) > TRIAL_DIGITS:
        return f"a search whose trials are jobs can have {10**TRIAL_DIGITS} of them: start another one"
    try:
        return trial_job(search, order)
    except ValueError as error:
        return str(error)


def trial_job(search: Search, order: TrialOrder) -> Object:
    """The job that is a trial.

    Raises:
        ValueError: with the trial's model and parameters it is no valid job.
    """
    of_search, trial = dump(search.spec), dump(search.spec.trial)
    spec: Object = {name: trial[name] for name in ("model", "data", "phases", "workers", "checkpoint") if name in trial}
    shared = ("image", "imagePullPolicy", "imagePullSecrets", "seed", "maxRestarts")
    spec |= {name: of_search[name] for name in shared if name in of_search}
    if search.spec.trial.timeout_seconds is not None:
        spec["activeDeadlineSeconds"] = search.spec.trial.timeout_seconds
    if order.model is not None:
        spec["model"] = order.model
    for name, value in order.parameters.items():
        set_parameter(spec, name, value)
    try:
        TrainingJobSpec.model_validate(spec)
    except ValidationError as error:
        raise ValueError(f"its job would be invalid: {first_problem(error)}: correct trial or space") from error
    return _marked(search, order.number, order.given, spec)


def _marked(search: Search, number: int, given: dict[str, Any], spec: Object) -> Object:
    job = job_of(search, search.trial(number), spec)
    job["metadata"]["labels"][naming.TRIAL] = str(number)
    job["metadata"]["annotations"] = {naming.GIVEN: json.dumps(given, separators=(",", ":"))}
    return job
