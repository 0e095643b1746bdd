"""Jobs on real nodes: real pods that really train, and everything that may befall them.

One job lives through most of it, as a user's would. Its model takes its time for each step and it stops at no number
of them, so it is there for as long as it is needed, and every worker records which samples it loaded and applied.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from localcluster.config import HOST_IP
from tests.e2e.cluster_api import Object, until
from tests.e2e.cluster_jobs import (
    ROOT,
    ClusterJob,
    Site,
    identity,
    longest_stall,
    name_of,
    node_of,
    processes,
    signal_pod,
)
from tests.support.git import Repository, served

HERE = Path(__file__).parent

# With no image built and no program compiled, the first one's preparation takes most of half an hour.
pytestmark = pytest.mark.timeout(2400)

REPLACED_SECONDS = 25.0
"""Bar: workers of a lost node run on another one so soon. Its Lease is watched for 12 s, as no clock is compared."""


@pytest.fixture(scope="module")
def long_job(site: Site) -> Iterator[ClusterJob]:
    job = site.job("long", workers={"terminationGracePeriodSeconds": 10})
    yield job
    job.remove()


@pytest.fixture
def job(long_job: ClusterJob) -> ClusterJob:
    """The long job at its size, in motion."""
    long_job.settled(2)
    long_job.advances(steps=5)
    return long_job


# What is taken away is replaced, and nobody else notices.


def test_a_deleted_worker_is_replaced_and_nobody_restarts(job: ClusterJob) -> None:
    victim, survivor = job.workers
    assert node_of(victim) != node_of(survivor), "workers share a node where there are two"
    before, coordinator = identity(survivor), identity(job.coordinator or {})
    highest = max(int(name_of(pod).rpartition("-")[2]) for pod in (victim, survivor))
    event = time.time()
    job.delete(victim)
    until("another worker is made", lambda: name_of(victim) not in map(name_of, job.workers))
    workers = job.settled(2, 20)
    assert name_of(workers[0]) == name_of(survivor)
    assert name_of(workers[1]) == f"long-worker-{highest + 1}"
    assert identity(workers[0]) == before
    assert identity(job.coordinator or {}) == coordinator
    job.advances()
    assert job.stall(name_of(survivor), event, 10) < 2.0
    assert not job.status.get("restarts")
    assert job.check_samples() > 0


def test_a_killed_process_is_replaced_and_not_counted(job: ClusterJob) -> None:
    victim, survivor = job.workers
    before = identity(survivor)
    signal_pod(victim, signal.SIGKILL)
    until("it is missed", lambda: name_of(victim) not in map(name_of, job.workers))
    workers = job.settled(2, 20)
    assert identity(workers[0]) == before
    assert not job.status.get("restarts"), "a kill from outside is no failure of the worker's own"
    assert job.condition("Restarting").get("status") != "True"


@pytest.mark.parametrize("how", ["deleted", "killed"])
def test_training_goes_on_without_its_coordinator(job: ClusterJob, how: str) -> None:
    workers, gone = job.workers, job.coordinator
    assert gone is not None
    before = [identity(pod) for pod in workers]
    event = time.time()
    if how == "deleted":
        job.delete(gone)
    else:
        signal_pod(gone, signal.SIGKILL)
    until("another coordinator", lambda: (one := job.coordinator) and name_of(one) != name_of(gone), 30, job.tell)
    assert [identity(pod) for pod in job.settled(2, 30)] == before
    number = int(name_of(gone).rpartition("-")[2])
    until("the status names it", lambda: job.status["coordinator"] == number + 1)
    job.advances()
    assert max(job.stall(name_of(pod), event, 10) for pod in workers) < 1.0, "training waited for a coordinator"
    begun = job.step
    until("the new lineage commits", lambda: job.saved_step >= begun, 30, job.tell)
    job.check_samples()


def test_training_goes_on_without_the_operator(site: Site, job: ClusterJob) -> None:
    everybody = [*job.workers, *job.pods("coordinator")]
    before = [identity(pod) for pod in everybody]
    operator = site.operator()
    event = time.time()
    signal_pod(operator, signal.SIGKILL)

    def back() -> bool:
        (container,) = site.operator()["status"]["containerStatuses"]
        return bool(container["ready"]) and container["restartCount"] > 0

    until("the operator is back", back, 60)
    job.advances()
    assert [identity(pod) for pod in [*job.settled(2), *job.pods("coordinator")]] == before
    assert max(job.stall(name_of(pod), event, 15) for pod in job.workers) < 1.0
    # And it is in charge again.
    victim = job.workers[0]
    job.delete(victim)
    until("the loss is noticed", lambda: name_of(victim) not in map(name_of, job.workers))
    job.settled(2, 30)


def test_all_workers_at_once_resume_from_the_checkpoint(job: ClusterJob) -> None:
    workers = job.workers
    until("a checkpoint", lambda: job.saved_step, 30)
    reached = job.step
    for pod in workers:
        job.delete(pod)
    until("both are replaced", lambda: not {*map(name_of, workers)} & {*map(name_of, job.workers)})
    after = job.settled(2, 30)
    first = until("the first step", lambda: job.times(name_of(after[0])) or job.times(name_of(after[1])))[0][1]
    # A checkpoint is due every five seconds, of twenty steps each, and takes a moment to write.
    assert reached - 200 < first <= reached + 10, "training did not resume where the checkpoint is"
    until("what was lost is done again", lambda: job.step > reached + 10, 60)
    job.check_samples()
    assert not job.status.get("restarts")


# A worker's own failures.


def test_a_bug_is_not_retried_for_ever(site: Site) -> None:
    model = {"name": "paced:mlp", "args": {"fails_after": 5}}
    job = site.job("bug", traced=False, model=model, maxRestarts=1)
    until("it has failed", lambda: job.status.get("phase") == "Failed", 60, job.tell)
    failed = job.condition("Failed")
    assert failed["reason"] == "TooManyFailures"
    assert "workers failed 2 times, and maxRestarts is 1" in failed["message"]
    assert "RuntimeError: this model was made to fail" in failed["message"]
    until("no worker is left", lambda: not job.workers, 20)
    job.remove()


def test_a_wrong_argument_fails_at_once(site: Site) -> None:
    job = site.job("typo", traced=False, model={"name": "resnet", "args": {"dept": 8}})
    until("it has failed", lambda: job.status.get("phase") == "Failed", 45, job.tell)
    failed = job.condition("Failed")
    assert failed["reason"] == "InvalidManifest"
    assert re.search(r"model.args.dept: unknown; (it|resnet) takes depth, width", failed["message"])
    assert not job.status.get("restarts")
    job.remove()


def test_out_of_memory_is_counted_and_explained(site: Site) -> None:
    workers = {"replicas": 1, "resources": {"requests": {"cpu": "100m"}, "limits": {"memory": "900Mi"}}}
    model = {"name": "paced:mlp", "args": {"eats_after": 5}}
    job = site.job("glutton", traced=False, workers=workers, model=model, maxRestarts=0)
    until("it has failed", lambda: job.status.get("phase") == "Failed", 45, job.tell)
    assert "out of memory: raise workers.resources.limits.memory" in job.condition("Failed")["message"]
    assert job.status["restarts"] == 1
    job.remove()


# What keeps a job from starting is said within ten seconds, with the remedy.

OBSTACLES: dict[str, tuple[Object, Object, str, str]] = {
    "claim": (
        {},
        {"checkpoint": {"volume": {"persistentVolumeClaim": {"claimName": "nowhere"}}}},
        "ClaimNotFound",
        'there is no PersistentVolumeClaim "nowhere" in namespace {namespace}: create it, or change checkpoint.volume',
    ),
    "image": (
        {},
        {"image": "{registry}/none:1"},
        "ImagePullFailed",
        "check image and imagePullSecrets",
    ),
    "gpus": (
        {"resources": {"limits": {"nvidia.com/gpu": 4096}}},
        {},
        "Unschedulable",
        "Insufficient nvidia.com/gpu",
    ),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_keeps_a_job_from_starting_is_said(site: Site, name: str) -> None:
    workers, spec, reason, words = OBSTACLES[name]
    if "image" in spec:
        # One that says at once that it doesn't have the image; how long others are asked is the nodes' affair.
        spec = {"image": spec["image"].format(registry=site.trainer_image.partition("/")[0])}
    job = site.job(f"stuck-{name}", traced=False, workers=workers, **spec)
    until(f"it says {reason}", lambda: job.condition("PodsReady").get("reason") == reason, 10, job.tell)
    said = job.condition("PodsReady")
    assert said["status"] == "False"
    assert said["message"].startswith("0 of 2 workers running; ")
    assert words.format(namespace=site.namespace) in said["message"]
    assert len(job.pods("worker")) == (0 if name == "claim" else 2), "nothing is made twice"
    job.remove()


def test_the_gpu_example_trains(site: Site) -> None:
    objects = [*yaml.safe_load_all((ROOT / "examples/gpu.yaml").read_text())]
    for one in objects:
        if one["kind"] == "AdaptiveTrainingJob":
            one["spec"] |= {"image": site.trainer_image, "imagePullPolicy": "Always"}
            one["spec"]["phases"][0]["stop"] = {"epochs": 2}
    site.apply(*objects)
    job = ClusterJob(site, "digits-gpu")
    until("it has succeeded", lambda: job.status.get("phase") in ("Succeeded", "Failed"), 90, job.tell)
    assert job.status["phase"] == "Succeeded", job.tell()
    assert (site.volume("digits-gpu") / job.status["model"]["path"]).stat().st_size > 0
    ended = job.pods("worker")
    assert [pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] for pod in ended] == ["1", "1"]
    until("both end by themselves", lambda: {p["status"]["phase"] for p in job.pods("worker")} == {"Succeeded"}, 30)
    job.remove()


# What a user asks for.


def test_a_script_of_ones_own_trains(site: Site) -> None:
    folder = ROOT / "examples/own_script"
    source = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "own-script"}}
    manifest = yaml.safe_load((folder / "job.yaml").read_text())
    manifest["spec"] |= {"image": site.trainer_image, "imagePullPolicy": "Always"}
    manifest["spec"]["workers"]["resources"] = {"requests": {"cpu": "100m", "memory": "256Mi"}}
    site.apply({**source, "data": {"train.py": (folder / "train.py").read_text()}}, manifest)
    job = ClusterJob(site, "own-script")
    until("it has ended", lambda: job.status.get("phase") in ("Succeeded", "Failed"), 120, job.tell)
    assert job.status["phase"] == "Succeeded", job.tell()
    assert float(job.status["metric"].removeprefix("test/accuracy=")) > 0.85
    assert job.status["step"] == 20 * 22
    assert not job.status.get("restarts")
    job.remove()


def test_a_torchrun_script_from_git_survives_the_loss_of_worker_0(site: Site, tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository")
    commit = repository.commit(train=(HERE / "torchrun_steps.py").read_text())
    site.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "git"}, "stringData": {"password": "s3cret"}}
    )
    with served(repository, HOST_IP, login=("git", "s3cret")) as url:
        script = {
            "launcher": "torchrun",
            "command": ["python", "train.py"],
            "source": {"git": {"url": url, "ref": "main", "secretRef": {"name": "git"}}},
        }
        job = site.job("torchrun", model=None, data=None, phases=None, script=script)
        snapshot = job.folder / "snapshot"
        until("a snapshot", lambda: snapshot.exists() and int(snapshot.read_text()) > 20, 60, job.tell)
        first, survivor = job.settled(2)
        assert job.status["sourceCommit"] == commit
        repository.commit(train="raise SystemExit('not this one')")
        before = identity(survivor)
        job.delete(first)
        until("its loss is noticed", lambda: name_of(first) not in map(name_of, job.workers))
        workers = job.settled(2, 60)
        assert identity(workers[0], pids=False)[0] == before[0]
        reached = int(snapshot.read_text())
        until("it goes on", lambda: int(snapshot.read_text()) > reached, 30, job.tell)
        (job.folder / "stop").touch()
        until("it has ended", lambda: job.status.get("phase") in ("Succeeded", "Failed"), 60, job.tell)
        assert job.status["phase"] == "Succeeded", job.tell()
        assert not job.status.get("restarts")
        job.remove()


def test_a_worker_of_two_processes(site: Site) -> None:
    job = site.job("sharded", workers={"processesPerWorker": 2})
    victim, survivor = job.settled(2, 90)
    job.advances()
    before = identity(survivor)
    assert len(processes(survivor)) == 2
    os.kill(max(processes(victim)), signal.SIGKILL)
    until("its worker is missed", lambda: name_of(victim) not in map(name_of, job.workers), 30, job.tell)
    workers = job.settled(2, 60)
    assert identity(workers[0]) == before
    job.advances()
    assert job.status.get("restarts") == 1, (
        "a process that is killed while its worker lives was short of memory, most often"
    )
    assert job.check_samples() > 0
    job.remove()


def test_a_job_tells_its_story(site: Site, job: ClusterJob) -> None:
    victim = job.workers[-1]
    job.delete(victim)
    until("another worker is made", lambda: name_of(victim) not in map(name_of, job.workers))
    job.settled(2, 30)
    # A pod that is deleted without grace is asked to end all the same, and may still manage to say so.
    lost = re.compile(rf"{name_of(victim)} (leaves|is gone)")
    until("the loss is told", lambda: lost.search(str(job.status.get("recentChanges"))), 10, job.tell)
    words = ("explain", "long", "-n", site.namespace)
    environment = {
        **os.environ,
        "KUBECONFIG": str(site.cluster.kubeconfig),
        "PATH": f"{site.cluster.tool('kubectl').parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        [sys.executable, "-m", "adaptrain.cli.main", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("long: Running\n  workers: 2/2\n")
    assert lost.search(done.stdout)
    assert "goodput: " in done.stdout
    events = site.kubectl("get", "events", "-n", site.namespace, "--field-selector", "reason=MembershipChanged")
    assert lost.search(events)


def test_scale_up_and_down(site: Site, job: ClusterJob) -> None:
    before = {name_of(pod): identity(pod) for pod in job.workers}
    event = time.time()
    site.kubectl("scale", "atj", "long", "-n", site.namespace, "--replicas=3")
    workers = job.settled(3, 30)
    assert {name_of(pod): identity(pod) for pod in workers if name_of(pod) in before} == before
    assert job.status["workers"] == "3/3"
    site.kubectl("scale", "atj", "long", "-n", site.namespace, "--replicas=2")
    workers = job.settled(2, 30)
    assert {name_of(pod): identity(pod) for pod in workers} == before, "the newest was to leave"
    job.advances()
    assert max(job.stall(name, event) for name in before) < 2.0
    job.check_samples()


def test_a_job_of_the_same_name_trains_while_the_old_ones_pods_linger(site: Site) -> None:
    """What a node keeps for pods of the old one isn't given to pods of the new one."""
    resources = {"requests": {"cpu": "50m", "memory": "256Mi"}}
    small = {"min": 2, "resources": resources, "terminationGracePeriodSeconds": 120}
    job = site.job("again", traced=False, workers=small, checkpoint=None)
    old = [*job.settled(2), job.coordinator or {}]
    for pod in old:
        signal_pod(pod, signal.SIGSTOP)
    site.api("DELETE", job.path, {"propagationPolicy": "Background"})
    until("the old one is gone", lambda: site.api("GET", job.path)[0] == 404)
    job = site.job("again", traced=False, workers=small, checkpoint=None)
    new = job.settled(2, 60)
    lingering = {pod["metadata"]["uid"]: node_of(pod) for pod in job.pods("worker")}
    left = {pod["metadata"]["uid"] for pod in old} & lingering.keys()
    assert {lingering[uid] for uid in left} >= {node_of(pod) for pod in new}, "the old pods left too soon"
    job.remove()


def test_suspend_and_resume_lose_no_step(job: ClusterJob) -> None:
    job.patch({"suspend": True})
    until("it is suspended", lambda: job.status["phase"] == "Suspended", 40, job.tell)
    until("nothing is left of it", lambda: not _pods(job), 10)
    reached = max(step for path in (job.folder / "trace").iterdir() for _, step in job.times(path.stem)[-1:])
    newest = max(int(path.name.split(".")[0].split("-")[1]) for path in job.folder.glob("step-*"))
    assert newest == reached + 1, "the last worker to go leaves a checkpoint of the last step"
    job.patch({"suspend": False})
    workers = job.settled(2)
    until("a step", lambda: all(job.times(name_of(pod)) for pod in workers))
    assert min(job.times(name_of(pod))[0][1] for pod in workers) == newest
    job.advances()
    job.check_samples()


def test_a_hung_worker_is_replaced_elsewhere(job: ClusterJob) -> None:
    victim, survivor = job.workers
    before, event = identity(survivor), time.time()
    signal_pod(victim, signal.SIGSTOP)
    until("it is missed", lambda: name_of(victim) not in map(name_of, job.workers), 20, job.tell)
    workers = job.settled(2, 30)
    assert identity(workers[0]) == before
    avoided = workers[1]["metadata"].get("annotations", {}).get("adaptrain.io/avoided-nodes", "")
    assert not avoided or node_of(workers[1]) != node_of(victim) == avoided
    # The node is well: its next Lease says so.
    until("its node is used again", lambda: not job.status.get("avoidedNodes"), 20, job.tell)
    job.advances()
    assert job.stall(name_of(survivor), event) < 5.0
    until("the hung process is gone", lambda: not processes(victim))
    assert not job.status.get("restarts")
    job.check_samples()


def evict(site: Site, pod: Object) -> tuple[int, Object]:
    path = f"/api/v1/namespaces/{site.namespace}/pods/{name_of(pod)}/eviction"
    meta = {"name": name_of(pod), "namespace": site.namespace}
    return site.api("POST", path, {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": meta})


def test_evictions_stop_at_min_and_drains_get_through(site: Site, job: ClusterJob) -> None:
    victim = job.workers[0]
    until("above min it is let go", lambda: evict(site, victim)[0] == 201, 10)
    job.settled(2, 40)
    site.kubectl("scale", "atj", "long", "-n", site.namespace, "--replicas=1")
    (last,) = job.settled(1, 40)
    answer, body = evict(site, last)
    assert answer == 429
    assert "disruption budget" in body["message"]
    # A drain asks again and again; another worker runs elsewhere before the last one may go.
    node, event = node_of(last), time.time()
    selector = "--pod-selector=adaptrain.io/job-name=long,adaptrain.io/role=worker"
    try:
        site.kubectl("drain", node, selector, "--timeout=60s", "--delete-emptydir-data")
    finally:
        site.kubectl("uncordon", node)
    (moved,) = job.settled(1, 40)
    assert node_of(moved) != node
    times = sorted(job.times(name_of(last)) + job.times(name_of(moved)))
    assert longest_stall(times, event, 30) < 2.0, "training stood still during the drain"
    site.kubectl("scale", "atj", "long", "-n", site.namespace, "--replicas=2")
    job.settled(2, 40)
    job.check_samples()


# A whole node, at the end: nothing else is going on then.


@pytest.mark.parametrize("with_coordinator", [False, True], ids=["", "with-coordinator"])
@pytest.mark.parametrize("how", ["stop", "cut"])
def test_a_lost_node(site: Site, job: ClusterJob, how: str, with_coordinator: bool) -> None:
    lost = next(node for node in site.nodes if node != site.operator_node)
    job.spread()
    job.move_coordinator(lost if with_coordinator else site.operator_node)
    by_node = job.spread()
    survivor = by_node[site.operator_node]
    before = identity(survivor)
    job.advances()
    end: Callable[[str], None] = site.cluster.node_start if how == "stop" else site.cluster.node_heal
    try:
        event = time.time()
        (site.cluster.node_stop if how == "stop" else site.cluster.node_cut)(lost)

        def replaced() -> bool:
            workers = [pod for pod in job.workers if node_of(pod) == site.operator_node]
            applied = [any(t > event for t, _ in job.times(name_of(pod))) for pod in workers]
            return len(workers) == 2 and all(applied)

        until("its worker runs on the other node", replaced, 60, job.tell)
        took = time.time() - event
        job.settled(2)
        job.advances()
        stall = job.stall(name_of(survivor), event)
        print(f"{how}{' with coordinator' if with_coordinator else ''}: stall {stall:.1f} s, replaced {took:.1f} s")
        assert identity(job.workers[0]) == before
        assert took <= REPLACED_SECONDS
        assert stall <= (25 if with_coordinator else 5)
    finally:
        end(lost)
    workers = {name_of(pod): identity(pod) for pod in job.settled(2)}
    names = {*workers, name_of(job.coordinator or {})}
    until("nothing is left of what was lost", lambda: _pods(job) == names, 60, job.tell)
    until("the node is used again", lambda: not job.status.get("avoidedNodes"), 30, job.tell)
    job.advances()
    assert {name_of(pod): identity(pod) for pod in job.settled(2)} == workers
    until("no process is left of it", lambda: not processes(by_node[lost]), 30)
    assert not job.status.get("restarts")
    job.check_samples()


def _pods(job: ClusterJob) -> set[str]:
    return {name_of(pod) for role in ("worker", "coordinator") for pod in job.pods(role)}
