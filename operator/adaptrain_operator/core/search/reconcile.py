"""What to do for an ArchitectureSearch: a job whose workers are its evaluators, and at the end one for its winner."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from adaptrain_api.contracts.coordinator_api import SearchEnd, TrialReports, TrialResult
from adaptrain_api.objects import ObjectMeta
from adaptrain_api.search.goals import Gate
from adaptrain_api.search.job import ArchitectureSearch, ArchitectureSearchSpec, metrics_named
from adaptrain_api.search.pool import leaves_weights
from adaptrain_api.search.pool import pool as evaluators_job
from adaptrain_api.search.space import set_parameter
from adaptrain_api.search.status import ArchitectureSearchStatus, OwnJob, TrialCounts, TrialSummary
from adaptrain_api.text import printable
from adaptrain_api.training.checkpoints import checkpoint_folder
from adaptrain_api.training.job import TrainingJobSpec, dump
from pydantic import ValidationError

from adaptrain_operator.core.conditions import Conditions
from adaptrain_operator.core.objects.owned import contained
from adaptrain_operator.core.objects.ownership import LEAVING, right
from adaptrain_operator.core.observed import Object, moment
from adaptrain_operator.core.plan import Deletion, Event
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
from adaptrain_operator.core.search.trials import TrialsPlan, decide_trials, remove_trials
from adaptrain_operator.core.text import duration, first_problem

logger = logging.getLogger(__name__)

MOST_TOLD = 10
CHOICES_LENGTH = 2000
"""Of an architecture in the status: ten of them must leave it small."""


@dataclass(slots=True)
class SearchPlan:
    """The reconciler carries it out in this order: apply, delete, reports, status, events.

    What the status says was made must be there: a status that came first would be believed after a crash between them.
    """

    status: ArchitectureSearchStatus
    apply: list[Object] = field(default_factory=list)
    delete: list[Deletion] = field(default_factory=list)
    """Jobs of trials, and those that say they are the search's and are not on record."""
    reports: TrialReports | None = None
    """What the coordinator is told of its trials' jobs; None: it has none."""
    events: list[Event] = field(default_factory=list)
    remove: bool = False
    requeue_after: float | None = None

    def wake(self, seconds: float) -> None:
        """Decide again after at most so long."""
        seconds = max(0.05, seconds)
        self.requeue_after = seconds if self.requeue_after is None else min(self.requeue_after, seconds)


@dataclass(slots=True)
class _Draft:
    search: Search
    seen: SearchObserved
    now: float
    plan: SearchPlan
    conditions: Conditions
    fields: dict[str, Any] = field(default_factory=dict)

    def event(self, type: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        self.plan.events.append(Event(type, reason, printable(message)))

    @property
    def pool(self) -> Object | None:
        return own(self.search, self.seen.jobs.get(self.search.pool))


def decide_search(search: Search, seen: SearchObserved, now: float) -> SearchPlan:
    """What to do for a search, given everything that was seen of it. Idempotent."""
    search = replace(search, status=_on_record(search, seen, now))
    draft = _Draft(
        search,
        seen,
        now,
        SearchPlan(status=search.status),
        Conditions(search.status.conditions, search.generation, now),
    )
    if search.deleting:
        return draft.plan
    if draft.conditions.true("Complete") and _goes_on(draft):
        draft.conditions.set("Complete", False, "BudgetRaised", "the search goes on: its budget was raised")
        draft.fields["completion_time"] = None
    ended = draft.conditions.true("Complete") or draft.conditions.true("Failed")
    if not ended:
        _tell_progress(draft)
        ended = _end(draft)
    if ended:
        _after_end(draft)
    else:
        _run(draft)
    draft.plan.status = search.status.model_copy(
        update={
            **draft.fields,
            "conditions": draft.conditions.list(),
            "observed_generation": search.generation,
        }
    )
    for type, warns in (("Complete", False), ("Failed", True), ("Promoted", False)):
        condition = draft.conditions.changed(type)
        if condition is not None and condition.status == "True":
            draft.event("Warning" if warns else "Normal", condition.reason, condition.message)
        elif condition is not None and type == "Promoted":
            draft.event("Warning", condition.reason, condition.message)
    for type in ("StudyWritable", "SpaceUsed"):
        condition = draft.conditions.changed(type)
        if condition is not None:
            draft.event("Normal" if condition.status == "True" else "Warning", condition.reason, condition.message)
    return draft.plan


def decide_search_anyhow(search: Search, seen: SearchObserved, now: float) -> SearchPlan:
    """A decision; if it raises, one that rests on nothing that coordinators say."""
    try:
        return decide_search(search, seen, now)
    except Exception:
        logger.exception("a decision failed", extra={"job": f"{search.namespace}/{search.name}"})
        plan = decide_search(search, SearchObserved(seen.jobs, refused=seen.refused), now)
        plan.wake(30.0)
        return plan


def _on_record(search: Search, seen: SearchObserved, now: float) -> ArchitectureSearchStatus:
    """The status without trials on record that are gone, and with no time in the future.

    The pool and the winner stay on record, so that it is empty only where none was ever kept.
    """
    status, latest = search.status, moment(now)
    kept = (search.pool, search.winner)
    jobs = [one for one in status.jobs if one.name in kept or one.uid == _uid(seen.jobs.get(one.name))]
    ready = next((one for one in status.conditions if one.type == "PodsReady"), None)
    taken = ready is not None and ready.reason == "NameTaken"
    if not status.jobs and status.observed_generation is not None and not taken:
        # By an operator that kept no record: what it made says so itself.
        names = [name for name in seen.jobs if name in (search.pool, search.winner) or search.number(name) is not None]
        ours = [seen.jobs[name] for name in names if claimed(search, seen.jobs[name])]
        jobs = [OwnJob(name=job["metadata"]["name"], uid=_uid(job)) for job in ours]
    times = {name: getattr(status, name) for name in ("start_time", "completion_time")}
    late = {name: latest for name, time in times.items() if time is not None and time > latest}
    return status.model_copy(update={"jobs": jobs, **late})


def _uid(job: Object | None) -> str:
    return "" if job is None else job["metadata"].get("uid") or ""


def _goes_on(draft: _Draft) -> bool:
    """The budget was raised after the search had used it up."""
    search, counts = draft.search, draft.search.status.trials or TrialCounts()
    complete = draft.conditions.get("Complete")
    assert complete is not None
    before, trials = search.status.budget or search.spec.budget, search.spec.budget.trials
    return (
        complete.reason == "SearchComplete"
        and search.spec.budget != before
        and (trials is None or trials > counts.complete + counts.pruned + counts.failed)
    )


def _run(draft: _Draft) -> None:
    search, spec = draft.search, draft.search.spec
    started = draft.fields.get("start_time") or search.status.start_time
    if started is None and not spec.suspend:
        started = draft.fields["start_time"] = moment(draft.now)
    limit = spec.active_deadline_seconds
    if limit is not None and started is not None and not spec.suspend:
        left = started.timestamp() + limit - draft.now
        if left <= 0:
            message = f"the search ran for activeDeadlineSeconds ({limit} s) without completing"
            _fail(draft, "DeadlineExceeded", message)
            _after_end(draft)
            return
        draft.plan.wake(left)
    if spec.suspend:
        draft.conditions.set(
            "Suspended",
            True,
            "SearchSuspended",
            f"{'evaluators' if spec.execution == 'Pool' else 'workers'} are removed, the study is kept: set suspend to"
            " false to go on",
        )
        draft.fields["start_time"] = None
    else:
        draft.conditions.clear("Suspended", "Resumed", "the search runs again")
    evaluators = _evaluators(draft)
    _apply_pool(draft, pool_job(search, evaluators))
    trials = _run_trials(draft) if spec.execution == "Jobs" else None
    _tell_pods(draft, trials, evaluators)
    draft.fields["budget"] = spec.budget
    draft.plan.wake(5.0)


def _run_trials(draft: _Draft) -> TrialsPlan:
    trials = decide_trials(draft.search, draft.seen)
    draft.plan.apply += trials.apply
    draft.plan.delete += trials.delete
    draft.plan.reports = trials.reports
    _tell_failed(draft, trials)
    return trials


def _tell_failed(draft: _Draft, trials: TrialsPlan) -> None:
    for one in trials.failed:
        draft.event("Warning", "TrialFailed", f"trial {one.number} failed: {one.message[:800]}")


def _evaluators(draft: _Draft) -> int | None:
    """How many evaluators there is something to try for; None: as many as there may be."""
    search, pool = draft.search, draft.pool
    if pool is None or search.spec.suspend or search.spec.execution == "Jobs":
        return None
    if not _same_search(pool_job(search)["spec"]["search"], pool["spec"].get("search")):
        return None  # with another budget there is something else to try
    progress = draft.seen.progress
    if draft.seen.current and progress is not None and progress.evaluators is not None:
        return progress.evaluators
    # A coordinator that takes over doesn't know yet who has a trial.
    before: int | None = pool["spec"]["workers"].get("replicas")
    return before


def pool_job(search: Search, evaluators: int | None = None) -> Object:
    """The job whose workers are the evaluators; None: as many as there may be."""
    meta = ObjectMeta(name=search.name, namespace=search.namespace, uid=search.uid)
    job = evaluators_job(ArchitectureSearch(metadata=meta, spec=search.spec), evaluators)
    return job_of(search, search.pool, dump(job)["spec"])


def _same_search(wanted: Object, found: Object | None) -> bool:
    """However much of the defaults is written down in one of them."""
    try:
        return ArchitectureSearch.model_validate(wanted) == ArchitectureSearch.model_validate(found)
    except ValidationError:
        return False


def _apply_pool(draft: _Draft, wanted: Object) -> None:
    if not right(wanted, draft.pool):
        draft.plan.apply.append(wanted)


def _tell_pods(draft: _Draft, trials: TrialsPlan | None, evaluators: int | None) -> None:
    """The evaluators' own conditions are the pool's.

    Args:
        trials: of a search whose trials are jobs.
        evaluators: how many there is something to try for; None: as many as there may be.
    """
    search, pool = draft.search, draft.pool
    wanted = 0 if search.spec.suspend else search.spec.parallelism.max
    if evaluators is not None:
        wanted = min(wanted, max(1, evaluators))
    if pool is None:
        taken = stranger(search, draft.seen.jobs.get(search.pool))
        if _remove_claimed(draft, search.pool):
            draft.plan.apply.clear()
        elif taken is not None:
            draft.conditions.set("PodsReady", False, *taken)
            draft.plan.apply.clear()
        draft.fields |= {"phase": "Pending", "evaluators": f"0/{wanted}"}
        return
    status = status_of(pool)
    running = trials.running if trials is not None else status.ready_replicas or 0
    draft.fields["evaluators"] = f"{running}/{wanted}"
    if search.spec.suspend or wanted == 0:
        draft.fields["phase"] = "Suspended" if search.spec.suspend and not running else "Pending"
        words = "the search is suspended" if search.spec.suspend else "parallelism.max is 0: raise it to go on"
        draft.conditions.set("PodsReady", False, "NoEvaluators", words)
        return
    draft.fields["phase"] = "Running" if status.phase == "Running" else "Pending"
    ready = condition_of(pool, "PodsReady")
    if trials is not None and ready is not None and ready.status == "True":
        told = trials.problem or ("TrialsRunning", f"{running} of at most {wanted} trials train")
        draft.conditions.set("PodsReady", trials.problem is None, *told)
    elif ready is not None:
        message = ready.message.replace("workers", "evaluators").replace("worker ", "evaluator ")
        draft.conditions.set("PodsReady", ready.status == "True", ready.reason, message)
    progress = draft.seen.progress
    if progress is not None and progress.storage_error:
        draft.conditions.set("StudyWritable", False, "StorageFailed", progress.storage_error[:800])
    else:
        draft.conditions.recover("StudyWritable", "Written", "the study is written")
    if progress is not None and progress.supernet:
        draft.conditions.set("SupernetTrained", False, "Training", progress.supernet)
    elif progress is not None:
        draft.conditions.recover("SupernetTrained", "Trained", "trials are of the cells that the network ranks first")
    if progress is not None and progress.unread:
        draft.conditions.set("SpaceUsed", False, "DimensionNotRead", progress.unread[:800])
    elif progress is not None and progress.unread == "":
        draft.conditions.recover("SpaceUsed", "AllRead", "trials look at every dimension")


def _tell_progress(draft: _Draft) -> None:
    progress = draft.seen.progress
    if progress is None:
        return
    spec, fields = draft.search.spec, draft.fields
    ended = progress.complete + progress.pruned + progress.failed
    known = draft.search.status.trials or TrialCounts()
    if ended < known.complete + known.pruned + known.failed:
        return  # of a coordinator that has just taken over
    counts = progress.model_dump(include={"complete", "pruned", "failed", "running"})
    fields["trials"] = TrialCounts(**counts)
    fields["progress"] = f"{ended}/{spec.budget.trials}" if spec.budget.trials is not None else str(ended)
    measured = [one for one in progress.top if one.metrics.keys() >= set(metrics_named(spec))]
    fields["top"] = [_summary(spec, one) for one in measured[:MOST_TOLD]]
    fields["pareto_size"] = progress.pareto_size
    fields["evaluations_per_minute"] = float(f"{progress.per_minute:.3g}")
    if fields["top"]:
        metric = spec.objectives[0].metric
        fields["best"] = f"{metric}={fields['top'][0].values[metric]:.4g}"
    fields["eta"] = None if draft.seen.eta is None else duration(draft.seen.eta)


def _summary(spec: ArchitectureSearchSpec, one: TrialResult) -> TrialSummary:
    values = {name: float(f"{one.metrics[name]:.6g}") for name in metrics_named(spec)}
    return TrialSummary(trial=one.trial, values=values, architecture=printable(one.choices)[:CHOICES_LENGTH])


def _end(draft: _Draft) -> bool:
    """Whether the search has ended, well or badly."""
    pool, progress = draft.pool, draft.seen.progress
    failed = None if pool is None else condition_of(pool, "Failed")
    if failed is not None and failed.status == "True":
        _fail(draft, failed.reason, failed.message)
        return True
    end = None if progress is None else progress.end
    if end is None:
        return False
    if end.outcome == "failed":
        _fail(draft, end.reason, end.message)
        return True
    if progress is not None and draft.search.spec.promote is not None:
        left = stranger(draft.search, draft.seen.jobs.get(draft.search.winner))
        if _remove_claimed(draft, draft.search.winner):
            return False
        if left is not None and left[0] == LEAVING:
            draft.conditions.set("Promoted", False, *left)
            return False
    _succeed(draft, end)
    return True


def _succeed(draft: _Draft, end: SearchEnd) -> None:
    draft.conditions.set("Complete", True, end.reason, end.message)
    draft.conditions.clear("PodsReady", "Complete", "the search is complete")
    draft.fields |= {"phase": "Succeeded", "completion_time": moment(draft.now), "eta": None}
    progress, promote = draft.seen.progress, draft.search.spec.promote
    if promote is None or progress is None:
        return
    if not progress.top:
        draft.conditions.set("Promoted", False, "NoWinner", "no trial ended with what the objectives name")
        return
    winner = progress.top[0]
    refusal = _refusal(promote.gate, winner, draft.seen.jobs)
    if refusal is not None:
        draft.conditions.set("Promoted", False, "GateNotPassed", refusal)
        return
    try:
        job = promoted_job(draft.search, winner)
    except ValueError as error:
        draft.conditions.set("Promoted", False, "InvalidJob", str(error))
        return
    if (taken := _taken(draft, job)) is not None:
        draft.conditions.set("Promoted", False, *taken)
        return
    if not contained(job, draft.seen.jobs.get(draft.search.winner)):
        draft.plan.apply.append(job)
    draft.fields["promoted_job"] = draft.search.winner
    draft.conditions.set(
        "Promoted",
        True,
        "JobCreated",
        f"trial {winner.trial} is trained by the job {draft.search.winner}"
        + _missing_weights(draft.search, winner, job),
    )


def _remove_claimed(draft: _Draft, name: str) -> bool:
    """Whether there is a job of this name that is not on record and says that it is the search's: it goes."""
    there = draft.seen.jobs.get(name)
    if there is None or not claimed(draft.search, there):
        return False
    draft.plan.delete.append(Deletion(name, _uid(there)))
    draft.plan.wake(1.0)
    return True


def _taken(draft: _Draft, wanted: Object) -> tuple[str, str] | None:
    """Why the winner can't have its job's name: the reason, in a word and in a sentence."""
    name, there = draft.search.winner, draft.seen.jobs.get(draft.search.winner)
    if there is None:
        return None
    if (taken := stranger(draft.search, there)) is not None:
        return taken
    if contained(wanted, there):
        return None
    return "EarlierWinner", f"the job {name} trains an earlier winner: delete it, and raise the budget once more"


def _refusal(gate: Gate | None, winner: TrialResult, jobs: Mapping[str, Object]) -> str | None:
    """Why the winner doesn't pass; None if it does."""
    if gate is None:
        return None
    value = winner.metrics.get(gate.metric)
    if value is None:
        reported = ", ".join(sorted(winner.metrics))
        return f"trial {winner.trial} reported no {gate.metric}, which the gate names; it reported {reported}"
    head = f"the winner, trial {winner.trial}, has {gate.metric} {value:.6g}"
    if gate.at_least is not None and value < gate.at_least:
        return f"{head}, and the gate wants at least {gate.at_least:g}: nothing was created"
    if gate.at_most is not None and value > gate.at_most:
        return f"{head}, and the gate wants at most {gate.at_most:g}: nothing was created"
    if gate.better_than is None:
        return None
    rival = jobs.get(gate.better_than)
    model = None if rival is None else status_of(rival).model
    if model is None or model.value is None or model.metric != gate.metric:
        return f"the gate compares with {gate.metric} of the job {gate.better_than}, which has left none"
    better = value < model.value if gate.at_most is not None or "loss" in gate.metric else value > model.value
    return None if better else f"{head}, not better than {model.value:.6g} of {gate.better_than}: nothing was created"


def promoted_job(search: Search, winner: TrialResult) -> Object:
    """The job that trains the winner.

    Raises:
        ValueError: the template, with the winner's model and parameters, is no valid job.
    """
    assert search.spec.promote is not None
    trial = dump(search.spec.trial)
    spec: Object = {name: trial[name] for name in ("model", "data", "phases") if name in trial}
    spec |= search.spec.promote.job
    if winner.model is not None:
        spec["model"] = winner.model
    for name, value in winner.parameters.items():
        set_parameter(spec, name, value)
    if (weights := _weights(search, winner)) is not None:
        spec.setdefault("initialWeights", weights)
    try:
        TrainingJobSpec.model_validate(spec)
    except ValidationError as error:
        raise ValueError(f"promote.job: with the winner in it, {first_problem(error)}: correct it") from error
    return job_of(search, search.winner, spec)


def _weights(search: Search, winner: TrialResult) -> Object | None:
    """What the winner's job starts from, if its trial left something that fits the job's model."""
    storage, promote = search.spec.storage, search.spec.promote
    assert promote is not None
    if winner.weights is None or storage is None or storage.volume is None or not promote.weights:
        return None
    if _trains_another_model(search, winner):
        return None
    folder = checkpoint_folder(search.namespace, search.pool)
    return {
        "volume": dump(storage.volume),
        "path": f"{folder}/{winner.weights.path}",
        "sha256": winner.weights.sha256,
    }


def _trains_another_model(search: Search, winner: TrialResult) -> bool:
    """Whether the winner's job has a model of its own, which the trial's weights are not of."""
    return search.spec.promote is not None and winner.model is None and "model" in search.spec.promote.job


def _missing_weights(search: Search, winner: TrialResult, job: Object) -> str:
    """What is to be said if the winner's job should start from its trial's weights, and can't."""
    pool = TrainingJobSpec.model_validate(pool_job(search)["spec"])
    if winner.weights is not None or not leaves_weights(pool) or _trains_another_model(search, winner):
        return ""
    if "initialWeights" in job["spec"]:
        return ""
    return ", from random weights: the trial's own could not be written; the evaluators' logs say why"


def _fail(draft: _Draft, reason: str, message: str) -> None:
    draft.conditions.set("Failed", True, reason, message)
    draft.conditions.clear("PodsReady", "Failed", "the search has failed")
    draft.fields |= {"phase": "Failed", "completion_time": moment(draft.now), "eta": None}


def _after_end(draft: _Draft) -> None:
    """The evaluators go; the study stays where it is, and so does the promoted job.

    The pool's job stays, too, without pods: it knows which number the next coordinator has.
    """
    search = draft.search
    if draft.pool is not None:
        wanted = pool_job(search)
        wanted["spec"]["suspend"] = True
        _apply_pool(draft, wanted)
    removed = remove_trials(search, draft.seen)
    draft.plan.delete += removed.delete
    _tell_failed(draft, removed)
    draft.fields["evaluators"] = "0/0"
    trials = draft.fields.get("trials") or search.status.trials
    if trials is not None:
        draft.fields["trials"] = trials.model_copy(update={"running": 0})
    done = draft.fields.get("completion_time") or search.status.completion_time or moment(draft.now)
    ttl = search.spec.ttl_seconds_after_finished
    if ttl is None:
        return
    if draft.now >= done.timestamp() + ttl:
        draft.plan.remove = True
    else:
        draft.plan.wake(done.timestamp() + ttl - draft.now)
