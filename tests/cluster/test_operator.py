"""The operator against a real API server, its pods on simulated nodes."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from operator_fixtures import (
    JOBS,
    Cluster,
    Coordinator,
    Object,
    Operator,
    cluster,
    operator,
    simulated_nodes,
    start,
    until,
)

__all__ = ["cluster", "operator", "simulated_nodes", "start"]


@pytest.fixture
def training(cluster: Cluster, operator: Operator) -> Iterator[Coordinator]:
    """A job "train" whose two workers take part."""
    cluster.create("train")
    until(lambda: len(cluster.workers("train")) == 2, what="two workers")
    answering = Coordinator(cluster, "train", 1)
    answering.members()
    until(lambda: cluster.job("train")["status"].get("phase") == "Running", what="Running")
    yield answering
    answering.stop()


def test_a_job_runs_resizes_and_goes(cluster: Cluster, training: Coordinator) -> None:
    status = cluster.job("train")["status"]
    assert (status["workers"], status["nextWorker"], status["coordinator"]) == ("2/2", 2, 1)
    assert cluster.condition("train", "PodsReady")[:2] == ("True", "AllWorkersRunning")

    scale = f"{cluster.jobs_path}/train/scale"
    assert cluster.call("GET", scale)["status"]["replicas"] == 2
    cluster.call("PATCH", scale, {"spec": {"replicas": 4}}, "application/merge-patch+json")
    until(lambda: len(cluster.workers("train")) == 4, what="four workers")
    assert cluster.workers("train")[:2] == ["train-worker-0", "train-worker-1"]
    training.members()
    until(lambda: cluster.job("train")["status"]["workers"] == "4/4", what="4/4")
    cluster.patch("train", {"workers": {"replicas": 1}})
    until(lambda: cluster.workers("train") == ["train-worker-0"], what="one worker")

    cluster.delete("train")
    kinds = ("pods", "services", "secrets", "serviceaccounts", "configmaps")
    until(lambda: all(not _ours(cluster, f"{cluster.core}/{kind}") for kind in kinds), 60, "all children are gone")


def _ours(cluster: Cluster, path: str) -> list[Object]:
    return list(cluster.call("GET", f"{path}?labelSelector=app.kubernetes.io/managed-by=adaptrain-operator")["items"])


def test_nothing_is_written_when_nothing_happens(cluster: Cluster, operator: Operator, training: Coordinator) -> None:
    time.sleep(3)
    before = operator.writes()
    version = cluster.job("train")["metadata"]["resourceVersion"]
    time.sleep(10)
    assert operator.writes() == before
    assert cluster.job("train")["metadata"]["resourceVersion"] == version


def test_lost_workers_are_replaced_quickly_twenty_times_in_a_row(cluster: Cluster, training: Coordinator) -> None:
    took = []
    for _ in range(20):
        names = cluster.workers("train")
        began = time.monotonic()
        cluster.call("DELETE", f"{cluster.core}/pods/{names[0]}", {"gracePeriodSeconds": 0})
        until(lambda names=names: len(set(cluster.workers("train")) - {names[0]}) == 2, 20, "a replacement")
        took.append(time.monotonic() - began)
        training.members()
    assert max(took) <= 8, took
    assert not cluster.job("train")["status"].get("restarts")


def test_a_workers_own_failure_is_counted_and_told(cluster: Cluster, training: Coordinator) -> None:
    cluster.fail("train-worker-0", 1, "ValueError: no such column")
    status, _, message = until(lambda: (c := cluster.condition("train", "Restarting"))[0] == "True" and c, 10)
    assert status == "True"
    assert "ValueError: no such column" in message
    until(lambda: len(cluster.workers("train")) == 2, 15, "the replacement")
    training.members()
    until(lambda: cluster.condition("train", "Restarting")[0] == "False", 15, "Recovered")
    assert cluster.job("train")["status"]["restarts"] == 1


def test_an_invalid_manifest_fails_at_once(cluster: Cluster, training: Coordinator) -> None:
    cluster.fail("train-worker-0", 64, "model.args: unknown argument 'widht'")
    until(lambda: cluster.job("train")["status"]["phase"] == "Failed", 10)
    assert "widht" in cluster.condition("train", "Failed")[2]


def test_a_silent_worker_is_replaced_on_another_node(cluster: Cluster, training: Coordinator) -> None:
    pod = next(pod for pod in cluster.pods("train", "worker") if pod["metadata"]["name"] == "train-worker-0")
    silent = [{"id": pod["metadata"]["uid"], "name": "train-worker-0", "since": time.time() + 60}]
    training.members("train-worker-1", silent=silent)
    until(lambda: "train-worker-2" in cluster.workers("train"), 10, "the replacement")
    training.progress = {**training.progress, "silent": []}
    new = next(pod for pod in cluster.pods("train", "worker") if pod["metadata"]["name"] == "train-worker-2")
    assert new["spec"]["nodeName"] != pod["spec"]["nodeName"]
    assert "train-worker-0" not in cluster.workers("train")


def test_a_coordinator_is_replaced_when_it_stops_answering(cluster: Cluster, training: Coordinator) -> None:
    began = time.monotonic()
    training.stop()
    until(lambda: cluster.job("train")["status"]["coordinator"] == 2, 20, "coordinator 2")
    assert 7 <= time.monotonic() - began <= 13
    until(lambda: len(cluster.pods("train", "coordinator")) == 1, 10, "only the new one")
    service = cluster.call("GET", f"{cluster.core}/services/train-coordinator")
    assert service["spec"]["selector"]["adaptrain.io/coordinator"] == "2"
    assert cluster.workers("train") == ["train-worker-0", "train-worker-1"]


def test_a_new_template_rolls_through_and_never_below(cluster: Cluster, training: Coordinator) -> None:
    cluster.patch("train", {"workers": {"env": [{"name": "LEVEL", "value": "2"}]}})

    def rolled() -> bool:
        workers = cluster.workers("train")
        assert 2 <= len(workers) <= 3
        training.members()
        return workers == ["train-worker-2", "train-worker-3"]

    until(rolled, 60, "both are new")


def test_completion_suspension_and_time_to_live(cluster: Cluster, training: Coordinator) -> None:
    cluster.patch("train", {"suspend": True})
    until(lambda: cluster.job("train")["status"]["phase"] == "Suspended", 40)
    assert cluster.pods("train") == []
    cluster.patch("train", {"suspend": False, "ttlSecondsAfterFinished": 3})
    until(lambda: cluster.workers("train") == ["train-worker-2", "train-worker-3"])
    cluster.complete(cluster.pods("train", "worker")[0])
    status = until(lambda: (s := cluster.job("train")["status"])["phase"] == "Succeeded" and s, 10)
    assert status["model"]["path"] == f"{cluster.namespace}.train/best.safetensors"
    until(lambda: cluster.jobs() == [], 20, "the job's time to live is over")
    until(lambda: cluster.pods() == [], 60, "its pods are gone")


def test_what_only_the_operator_can_see_becomes_a_condition(cluster: Cluster, operator: Operator) -> None:
    def told(name: str, reason: str) -> None:
        until(lambda: cluster.condition(name, "PodsReady")[1] == reason, 10, f"{name} {reason}")

    cluster.create("gpus", workers={"resources": {"limits": {"nvidia.com/gpu": 1}}, "nodeSelector": {"no": "where"}})
    told("gpus", "Unschedulable")
    # After the other job's pods, which count against it too: which of the two jobs it refuses is not left to chance.
    until(lambda: len(cluster.pods("gpus", "worker")) == 2, 10, "both of its workers")
    quota = {"metadata": {"name": "few"}, "spec": {"hard": {"requests.nvidia.com/gpu": "3"}}}
    cluster.call("POST", f"{cluster.core}/resourcequotas", quota)
    claim = {"volume": {"persistentVolumeClaim": {"claimName": "nowhere"}}}
    began = time.monotonic()
    cluster.create("claim", checkpoint=claim)
    cluster.create("quota", workers={"resources": {"limits": {"nvidia.com/gpu": 2}}})
    told("claim", "ClaimNotFound")
    told("quota", "QuotaExceeded")
    assert time.monotonic() - began <= 10
    before = operator.writes()
    time.sleep(5)
    assert operator.writes() - before <= 12, "a hot loop"
    mode = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Mi"}}, "storageClassName": "none"}
    cluster.call("POST", f"{cluster.core}/persistentvolumeclaims", {"metadata": {"name": "nowhere"}, "spec": mode})
    until(lambda: len(cluster.pods("claim", "worker")) == 2, 15, "workers, now that the claim is there")


def check_no_duplicate(cluster: Cluster) -> None:
    for job in cluster.jobs():
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        pods = [pod for pod in cluster.pods(name) if pod["status"]["phase"] in ("Pending", "Running")]
        roles = [pod["metadata"]["labels"]["adaptrain.io/role"] for pod in pods]
        assert roles.count("worker") <= 2, [pod["metadata"]["name"] for pod in pods]
        assert roles.count("coordinator") <= 1, [pod["metadata"]["name"] for pod in pods]
        for pod in pods:
            assert pod["metadata"]["ownerReferences"][0]["uid"] == uid


def test_the_operator_killed_twenty_times_during_twenty_jobs(cluster: Cluster, operator: Operator) -> None:
    chance = random.Random(7)
    for number in range(20):
        cluster.create(f"job-{number}")
        time.sleep(chance.random() * 1.5)
        operator.kill()
        operator.restart()
        if number % 5 == 4:
            # Give it a chance to come up at all now and then: starting takes as long as most of these lives.
            time.sleep(6)
    running = [f"job-{number}" for number in range(20)]
    until(lambda: all(len(cluster.workers(name)) == 2 for name in running), 120, "every job has two workers")
    until(lambda: all(len(cluster.pods(name, "coordinator", "Running")) == 1 for name in running), 30, "a coordinator")
    check_no_duplicate(cluster)
    for name in running:
        cluster.complete(cluster.pods(name, "worker", "Running")[0])
    until(lambda: all(job["status"]["phase"] == "Succeeded" for job in cluster.jobs()), 60, "all succeed")
    for name in running:
        cluster.delete(name)
    until(lambda: _ours(cluster, f"{cluster.core}/pods") == [], 90, "no orphan")


def test_two_replicas_and_a_graceful_change_of_lead(cluster: Cluster, start: Callable[..., Operator]) -> None:
    first = start("first")
    until(first.leads, 30, "the first leads")
    second = start("second")
    until(lambda: second.get("/readyz") == 200, 20, "the second stands by")
    assert not second.leads()
    cluster.create("one")
    until(lambda: len(cluster.workers("one")) == 2, what="two workers")
    assert first.stop() == 0
    until(second.leads, 8, "the second leads without waiting for the Lease to run out")
    cluster.create("two")
    until(lambda: len(cluster.workers("two")) == 2, what="two workers")
    third = start("third")
    second.kill()
    until(third.leads, 40, "the third leads when the Lease has run out")
    cluster.call("DELETE", f"{cluster.core}/pods/one-worker-0", {"gracePeriodSeconds": 0})
    until(lambda: cluster.workers("one") == ["one-worker-1", "one-worker-2"], what="the replacement")
    check_no_duplicate(cluster)


def test_deletions_that_no_watch_told_are_noticed(cluster: Cluster, start: Callable[..., Operator]) -> None:
    operator = start(ADAPTRAIN_OPERATOR_RESYNC_SECONDS="5")
    cluster.create("one")
    until(lambda: len(cluster.workers("one")) == 2, what="two workers")
    operator.kill()
    cluster.call("DELETE", f"{cluster.core}/pods/one-worker-0", {"gracePeriodSeconds": 0})
    cluster.call("DELETE", f"{cluster.core}/services/one-coordinator")
    operator.restart()
    until(lambda: cluster.workers("one") == ["one-worker-1", "one-worker-2"], what="the replacement")
    until(lambda: cluster.api("GET", f"{cluster.core}/services/one-coordinator").ok, what="the Service")


def test_a_job_of_the_same_name_starts_anew(cluster: Cluster, operator: Operator) -> None:
    cluster.create("again")
    until(lambda: len(cluster.workers("again")) == 2, what="two workers")
    cluster.delete("again")
    until(lambda: not cluster.api("GET", f"{cluster.jobs_path}/again").ok)
    uid = cluster.create("again")["metadata"]["uid"]

    def anew() -> bool:
        pods = [pod for pod in cluster.pods("again") if pod["metadata"]["ownerReferences"][0]["uid"] == uid]
        return len([pod for pod in pods if pod["status"]["phase"] == "Running"]) == 3

    until(anew, 60, "three pods of the new job")

    def owners(kind: str) -> list[list[str]]:
        found = [one["metadata"]["ownerReferences"] for one in _ours(cluster, f"{cluster.core}/{kind}")]
        return [[owner["uid"] for owner in each] for each in found]

    for kind in ("services", "configmaps", "serviceaccounts"):
        assert owners(kind) == [[uid]], kind
    until(lambda: owners("secrets") == [[uid]], what="the old job's token to go with it")


def test_health_and_metrics(operator: Operator, training: Coordinator) -> None:
    assert operator.get("/healthz") == 200
    assert operator.get("/readyz") == 200
    text = operator.metrics()
    assert 'adaptrain_operator_progress_pulls_total{outcome="ok"}' in text
    assert "train" not in [part for line in text.splitlines() if JOBS in line for part in line.split('"')]


@pytest.mark.skipif(os.environ.get("CLUSTER", "local") != "local", reason="only our own API server may be killed")
def test_the_api_server_restarts(cluster: Cluster, start: Callable[..., Operator]) -> None:
    from localcluster.api import Cluster as Local

    operator = start()
    until(operator.leads, 30, "the operator leads")
    cluster.create("before")
    until(lambda: len(cluster.workers("before")) == 2, what="two workers")
    server = next(one for one in Local().status().components if one.name.endswith("apiserver"))
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    time.sleep(3)
    Local().up(nodes=0)
    cluster.create("after")
    cluster.call("DELETE", f"{cluster.core}/pods/before-worker-0", {"gracePeriodSeconds": 0})

    def recovered() -> bool:
        if operator.process.poll() is not None:
            # It may give up; then the kubelet starts it anew.
            operator.restart()
        return (
            cluster.workers("before") == ["before-worker-1", "before-worker-2"] and len(cluster.workers("after")) == 2
        )

    until(recovered, 90, "both jobs are whole")
    check_no_duplicate(cluster)
