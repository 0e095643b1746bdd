"""The story of a job, from its status and events."""

import os
from pathlib import Path

import pytest
from adaptrain.cli import explain
from adaptrain.errors import InvalidJob

CHANGES = [
    {"change": "1.0", "time": "2026-01-01T10:00:00Z", "message": "digits-worker-0 joined"},
    {"change": "1.1", "time": "2026-01-01T10:05:00Z", "message": "digits-worker-1 is gone", "stallSeconds": 0.074},
]
JOB = {
    "metadata": {"name": "digits", "uid": "u"},
    "status": {
        "phase": "Running",
        "workers": "1/2",
        "step": 120,
        "goodput": "98.7%",
        "recentChanges": CHANGES,
        "conditions": [
            {
                "type": "Rescaling",
                "status": "True",
                "reason": "Waiting",
                "message": "1 of 2 workers running",
                "lastTransitionTime": "2026-01-01T10:05:00Z",
            }
        ],
    },
}
EVENTS = [
    {
        "metadata": {"creationTimestamp": "2026-01-01T10:05:01Z"},
        "lastTimestamp": "2026-01-01T10:05:01Z",
        "reason": "WorkersCreated",
        "message": "made digits-worker-2",
    },
    {
        "metadata": {"creationTimestamp": "2026-01-01T10:05:00Z"},
        "reason": "MembershipChanged",
        "message": "digits-worker-1 is gone",
    },
]


def test_the_story_is_told_in_order() -> None:
    assert explain.tell(JOB, EVENTS) == [
        "digits: Running",
        "  workers: 1/2",
        "  step: 120",
        "  goodput: 98.7%",
        "  Rescaling: 1 of 2 workers running",
        "",
        "what happened:",
        "  2026-01-01 10:00:00 digits-worker-0 joined",
        "  2026-01-01 10:05:00 digits-worker-1 is gone (workers stood still for 0.074 s)",
        "  2026-01-01 10:05:01 made digits-worker-2",
        "",
        "1 changes cost 0.074 s of standing still, 0.074 s at most.",
    ]


def test_why_a_job_waits_is_told() -> None:
    waiting = {"type": "PodsReady", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes have a GPU"}
    over = {"type": "Restarting", "status": "False", "reason": "Joined", "message": "workers are back"}
    when = {"lastTransitionTime": "2026-01-01T10:05:00Z"}
    job = {"metadata": {"name": "digits"}, "status": {"phase": "Pending", "conditions": [waiting | when, over | when]}}
    assert explain.tell(job, []) == ["digits: Pending", "  not PodsReady (Unschedulable): 0/2 nodes have a GPU"]
    done = job | {"status": job["status"] | {"phase": "Succeeded"}}  # type: ignore[operator]
    assert explain.tell(done, []) == ["digits: Succeeded"]


def test_a_pod_s_events_name_the_pod_and_how_often() -> None:
    event = {
        "metadata": {},
        "lastTimestamp": "2026-01-01T10:05:01Z",
        "involvedObject": {"kind": "Pod", "name": "digits-worker-0"},
        "reason": "Pulling",
        "message": 'Pulling image "trainer"',
        "count": 3,
    }
    told = explain.tell({"metadata": {"name": "digits"}}, [event])
    assert told[-1] == '  2026-01-01 10:05:01 digits-worker-0: Pulling image "trainer" (3 times)'


def test_a_search_has_a_story_too() -> None:
    search = {
        "kind": "ArchitectureSearch",
        "metadata": {"name": "cells"},
        "status": {"phase": "Running", "evaluators": "2/2", "trials": {"complete": 3, "running": 2}, "best": "acc=0.9"},
    }
    assert explain.tell(search, []) == [
        "cells: Running",
        "  evaluators: 2/2",
        "  trials: 3 complete, 0 pruned, 0 failed, 2 running",
        "  best: acc=0.9",
    ]


def test_what_a_worker_said_can_not_act_on_the_terminal_or_pass_for_our_words() -> None:
    words = "\x1b]0;owned\x07\x1b[2J\x9b1;1Hjob: Succeeded\r all is\u202e well"
    failed = {
        "type": "Failed",
        "status": "True",
        "reason": "R",
        "message": words,
        "lastTransitionTime": "2026-01-01T10:05:00Z",
    }
    change = {"change": "1.0", "time": "2026-01-01T10:00:00Z", "message": words}
    job = {
        "metadata": {"name": "job"},
        "status": {"phase": "Failed", "conditions": [failed], "recentChanges": [change]},
    }
    text = "\n".join(explain.tell(job, []))
    assert not set(text) & set("\x1b\x9b\x07\r\u202e")
    assert "job: Failed\n  Failed: job: Succeeded\n       all is well" in text


def test_the_lines_of_kubectl_s_own_log_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = "E1201 00:50:00.123456   12 memcache.go:265] could not get current server API group list"
    (tmp_path / "kubectl").write_text(f"#!/bin/sh\necho '{log}' >&2\necho 'The connection was refused' >&2\nexit 1\n")
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(InvalidJob) as caught:
        explain.explain("digits", None, None)
    assert str(caught.value) == "The connection was refused"


def test_a_job_that_nobody_has_seen_has_a_story_too() -> None:
    assert explain.tell({"metadata": {"name": "new"}}, []) == ["new: not seen by the operator yet"]


def test_without_kubectl_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InvalidJob, match="kubectl, which is not on the PATH: install it"):
        explain.explain("digits", None, None)
