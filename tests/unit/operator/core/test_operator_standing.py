"""Which jobs the operator names in its metrics."""

from adaptrain_operator.standing import MOST, Standing
from prometheus_client import CollectorRegistry

from tests.support.operator_world import Object

FAILED, WAITING = (f"adaptrain_operator_job_{what}_timestamp_seconds" for what in ("failed", "waiting"))


def job(name: str, **status: object) -> Object:
    meta = {"namespace": "ns", "name": name, "creationTimestamp": "2026-01-01T00:00:00Z"}
    return {"metadata": meta, "spec": {}, "status": status}


def told(*jobs: Object) -> dict[tuple[str, str], float]:
    standing, registry = Standing(), CollectorRegistry()
    standing.look(jobs)
    registry.register(standing)
    return {(s.name, s.labels["job_name"]): s.value for family in registry.collect() for s in family.samples}


def test_jobs_that_failed_or_wait_are_named() -> None:
    unready = {"type": "PodsReady", "status": "False", "lastTransitionTime": "2026-01-01T00:02:00Z"}
    found = told(
        job("new"),
        job("lost", phase="Pending", conditions=[unready]),
        job("failed", phase="Failed", completionTime="2026-01-01T00:05:00Z"),
        job("running", phase="Running"),
        job("done", phase="Succeeded", completionTime="2026-01-01T00:05:00Z"),
        job("asleep", phase="Pending") | {"spec": {"suspend": True}},
    )
    midnight = 1767225600.0
    assert found == {(WAITING, "new"): midnight, (WAITING, "lost"): midnight + 120, (FAILED, "failed"): midnight + 300}


def test_their_number_is_bounded_and_the_newest_stay() -> None:
    found = told(
        *(job(str(n), phase="Failed", completionTime=f"2026-01-01T{n // 60:02}:{n % 60:02}:00Z") for n in range(300))
    )
    assert len(found) == MOST
    assert (FAILED, "299") in found
    assert (FAILED, "0") not in found


def test_a_time_that_is_none_stops_nothing() -> None:
    assert told(job("odd", phase="Failed", completionTime="yesterday")) == {(FAILED, "odd"): 0.0}
