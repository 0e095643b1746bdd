"""The story of a job, from its status and events."""

import pytest
from adaptrain import explain
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


def test_a_job_that_nobody_has_seen_has_a_story_too() -> None:
    assert explain.tell({"metadata": {"name": "new"}}, []) == ["new: not seen by the operator yet"]


def test_without_kubectl_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InvalidJob, match="kubectl, which is not on the PATH: install it"):
        explain.explain("digits", None, None)
