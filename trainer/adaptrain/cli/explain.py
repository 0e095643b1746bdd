"""``adaptrain explain``: the story of a job or a search on a cluster, from its status and events."""

import json
import re
import shutil
import subprocess
from datetime import datetime
from typing import Any

from adaptrain_api.search.status import ArchitectureSearchStatus
from adaptrain_api.text import printable
from adaptrain_api.training.status import TrainingJobStatus

from adaptrain.errors import InvalidJob

Object = dict[str, Any]

SECONDS = 30
JOB, SEARCH = "adaptivetrainingjob", "architecturesearch"
EXPECTED = {"Suspended": False, "Rescaling": False, "Restarting": False, "Failed": False}
"""Conditions whose truth is news; of all others it is news that they are not true."""
ENDED = ("Succeeded", "Failed")
POD_NEWS = ("FailedScheduling", "Pulling", "Pulled", "Failed", "BackOff", "FailedMount", "FailedCreatePodSandBox")
"""Reasons of a pod's events that say what it waits for."""
POD_EVENTS = 12
"""The newest of them are shown."""
_KLOG = re.compile(r"[IWEF]\d{4} \d{2}:\d{2}:\d{2}\.\d+ ")


def explain(name: str, namespace: str | None, context: str | None) -> str:
    """Ask the cluster that kubectl talks to.

    Args:
        name: of a job or a search; ``job/NAME`` or ``search/NAME`` where both have that name.

    Raises:
        InvalidJob: there is no kubectl, no such job or search, or no answer.
    """
    where = [*(["--context", context] if context else []), *(["--namespace", namespace] if namespace else [])]
    found = _find(name, where)
    events = _kubectl("get", "events", f"--field-selector=involvedObject.uid={found['metadata']['uid']}", *where)
    label = "search-name" if found["kind"] == "ArchitectureSearch" else "job-name"
    pods = _kubectl("get", "pods", f"--selector=adaptrain.io/{label}={found['metadata']['name']}", *where)["items"]
    uids = {pod["metadata"]["uid"] for pod in pods}
    of_pods = _kubectl("get", "events", "--field-selector=involvedObject.kind=Pod", *where)["items"] if uids else []
    news = [e for e in of_pods if e["involvedObject"].get("uid") in uids and e.get("reason") in POD_NEWS]
    return "\n".join(tell(found, [*events["items"], *sorted(news, key=_when)[-POD_EVENTS:]]))


def _find(name: str, where: list[str]) -> Object:
    kind, _, bare = name.rpartition("/")
    kinds = {"": (JOB, SEARCH), "job": (JOB,), "atj": (JOB,), "search": (SEARCH,), "asearch": (SEARCH,)}.get(kind)
    if kinds is None:
        raise InvalidJob(f"{name}: must be the name of a job or a search, or job/NAME, or search/NAME")
    for one in kinds:
        found = _kubectl("get", one, bare, "--ignore-not-found", *where)
        if found:
            return found
    raise InvalidJob(
        f"there is no {' or '.join('job' if one == JOB else 'search' for one in kinds)} {bare!r} in"
        f" {'namespace ' + where[-1] if '--namespace' in where else 'the namespace of kubectl'}:"
        " see kubectl get atj,asearch --all-namespaces"
    )


def tell(found: Object, events: list[Object]) -> list[str]:
    """What there is to say of a job or a search, as lines; the oldest event first."""
    raw = found.get("status") or {}
    told: list[tuple[datetime, str]] = []
    if found.get("kind") == "ArchitectureSearch":
        search = ArchitectureSearchStatus.model_validate(raw)
        facts = _facts_of_search(search)
        phase, conditions, changes = search.phase, search.conditions, []
    else:
        job = TrainingJobStatus.model_validate(raw)
        facts = _facts_of_job(job)
        phase, conditions, changes = job.phase, job.conditions, job.recent_changes
    lines = [f"{found['metadata']['name']}: {phase or 'not seen by the operator yet'}"]
    lines += [f"  {what}: {value}" for what, value in facts.items() if value]
    for c in conditions:
        truth = c.status == "True"
        waits = not truth and c.type not in EXPECTED and phase not in (*ENDED, "Suspended")
        if c.message and (truth or waits):
            lines.append(f"  {c.type}: {c.message}" if truth else f"  not {c.type} ({c.reason}): {c.message}")
    for change in changes:
        cost = "" if change.stall_seconds is None else f" (workers stood still for {change.stall_seconds:.2g} s)"
        told.append((change.time, change.message + cost))
    for event in events:
        if event.get("reason") == "MembershipChanged" and changes:
            continue  # told above, as far back as the status remembers
        about = event.get("involvedObject") or {}
        whose = f"{about['name']}: " if about.get("kind") == "Pod" else ""
        times = f" ({event['count']} times)" if (event.get("count") or 1) > 1 else ""
        told.append((_when(event), f"{whose}{event.get('message', '')}{times}"))
    if told:
        lines += ["", "what happened:"]
        lines += [f"  {when:%Y-%m-%d %H:%M:%S} {what}" for when, what in sorted(told)]
    stalls = [c.stall_seconds for c in changes if c.stall_seconds is not None]
    if stalls:
        lines += ["", f"{len(stalls)} changes cost {sum(stalls):.2g} s of standing still, {max(stalls):.2g} s at most."]
    # What a worker said may have several lines: none of them may look like one of ours.
    return [printable(line).replace("\n", "\n      ") for line in lines]


def _facts_of_job(status: TrainingJobStatus) -> Object:
    return {
        "workers": status.workers,
        "step": status.step,
        "metric": status.metric,
        "time left": status.eta,
        "goodput": status.goodput,
        "skipped steps": status.skipped_steps,
        "failures of the workers' own": status.restarts,
        "model": status.model.path if status.model else None,
    }


def _facts_of_search(status: ArchitectureSearchStatus) -> Object:
    counts = status.trials
    trials = counts and f"{counts.complete} complete, {counts.pruned} pruned, {counts.failed} failed"
    return {
        "evaluators": status.evaluators,
        "trials": f"{trials}, {counts.running} running" if counts else None,
        "best": status.best,
        "the best architecture": status.top[0].architecture if status.top else None,
        "time left": status.eta,
        "job of the winner": status.promoted_job,
    }


def _when(event: Object) -> datetime:
    when = event.get("eventTime") or event.get("lastTimestamp") or event["metadata"]["creationTimestamp"]
    return datetime.fromisoformat(when)


def _kubectl(*words: str) -> Object:
    if shutil.which("kubectl") is None:
        raise InvalidJob("explain asks the cluster with kubectl, which is not on the PATH: install it")
    try:
        done = subprocess.run(
            ["kubectl", *words, "--output=json", "--request-timeout=10s"],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InvalidJob(f"the cluster did not answer within {SECONDS} s: check kubectl's context") from None
    if done.returncode != 0:
        # kubectl's own log lines come before the sentence that says what is wrong.
        said = [line for line in done.stderr.strip().splitlines() if not _KLOG.match(line)]
        raise InvalidJob(printable("\n".join(said)) or f"kubectl ended with exit code {done.returncode}")
    answer: Object = json.loads(done.stdout) if done.stdout.strip() else {}
    return answer
