"""``adaptrain explain``: the story of a job on a cluster, from what its status and its events tell."""

import json
import shutil
import subprocess
from datetime import datetime
from typing import Any

from adaptrain_api.training import AdaptiveTrainingJob
from adaptrain_api.training_status import TrainingJobStatus
from pydantic import ValidationError

from adaptrain.errors import InvalidJob

SECONDS = 30


def explain(name: str, namespace: str | None, context: str | None) -> str:
    """Ask the cluster that kubectl talks to.

    Raises:
        InvalidJob: there is no kubectl, no such job, or no answer.
    """
    where = [*(["--context", context] if context else []), *(["--namespace", namespace] if namespace else [])]
    job = _kubectl("get", "adaptivetrainingjob", name, *where)
    events = _kubectl("get", "events", f"--field-selector=involvedObject.uid={job['metadata']['uid']}", *where)
    return "\n".join(tell(job, events["items"]))


def tell(job: dict[str, Any], events: list[dict[str, Any]]) -> list[str]:
    """What there is to say of a job, as lines; the oldest event first."""
    try:
        status = AdaptiveTrainingJob.model_validate(job).status or TrainingJobStatus()
    except ValidationError:  # of a newer or older version: its status can be read all the same
        status = TrainingJobStatus.model_validate(job.get("status") or {})
    lines = [f"{job['metadata']['name']}: {status.phase or 'not seen by the operator yet'}"]
    facts = {
        "workers": status.workers,
        "step": status.step,
        "metric": status.metric,
        "time left": status.eta,
        "goodput": status.goodput,
        "skipped steps": status.skipped_steps,
        "failures of the workers' own": status.restarts,
        "model": status.model.path if status.model else None,
    }
    lines += [f"  {what}: {value}" for what, value in facts.items() if value]
    lines += [f"  {c.type}: {c.message}" for c in status.conditions if c.status == "True" and c.message]
    told: list[tuple[datetime, str]] = []
    for change in status.recent_changes:
        cost = "" if change.stall_seconds is None else f" (workers stood still for {change.stall_seconds:.2g} s)"
        told.append((change.time, change.message + cost))
    for event in events:
        if event.get("reason") == "MembershipChanged" and status.recent_changes:
            continue  # told above, as far back as the status remembers
        when = event.get("eventTime") or event.get("lastTimestamp") or event["metadata"]["creationTimestamp"]
        told.append((datetime.fromisoformat(when), event.get("message", "")))
    if told:
        lines += ["", "what happened:"]
        lines += [f"  {when:%Y-%m-%d %H:%M:%S} {what}" for when, what in sorted(told)]
    stalls = [c.stall_seconds for c in status.recent_changes if c.stall_seconds is not None]
    if stalls:
        lines += ["", f"{len(stalls)} changes cost {sum(stalls):.2g} s of standing still, {max(stalls):.2g} s at most."]
    return lines


def _kubectl(*words: str) -> dict[str, Any]:
    if shutil.which("kubectl") is None:
        raise InvalidJob("explain asks the cluster with kubectl, which is not on the PATH: install it")
    try:
        done = subprocess.run(
            ["kubectl", *words, "--output=json"], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise InvalidJob(f"the cluster did not answer within {SECONDS} s: check kubectl's context") from None
    if done.returncode != 0:
        raise InvalidJob(done.stderr.strip())
    found: dict[str, Any] = json.loads(done.stdout)
    return found
