"""Scripts of one's own: their files, their commit, their threads."""

import pytest
from adaptrain_operator.core.objects import pods

from tests.support.operator_world import T0, Object, World, stamp


@pytest.mark.parametrize(
    ("workers", "threads"),
    [
        ({}, "1"),
        ({"resources": {"limits": {"cpu": "4"}}}, "4"),
        ({"resources": {"limits": {"cpu": "500m"}}}, "1"),
        ({"resources": {"limits": {"cpu": 2}, "requests": {"cpu": 1}}}, "2"),
        ({"resources": {"requests": {"cpu": "1500m"}}}, "2"),
        ({"resources": {"requests": {"memory": "1Gi"}}}, "1"),
        ({"resources": {"limits": {"cpu": "7"}}, "processesPerWorker": 3}, "2"),
        ({"resources": {"limits": {"cpu": "1"}}, "processesPerWorker": 2}, "1"),
    ],
)
def test_threads(workers: Object, threads: str) -> None:
    job = World(workers=workers).job
    env = {one["name"]: one.get("value") for one in pods.worker_pod(job, 0, "i", ())["spec"]["containers"][0]["env"]}
    assert env["OMP_NUM_THREADS"] == threads
    assert env["GOMP_SPINCOUNT"] == "0"
    # Where the kubelet looks for a worker's last words: without them a completed worker left no result.
    assert env["ADAPTRAIN_TERMINATION_LOG"] == "/dev/termination-log"


def test_a_scripts_files_are_mounted_where_it_runs() -> None:
    script = {"command": ["python", "a.py"], "source": {"configMap": {"name": "code"}}}
    job = World(model=None, data=None, phases=None, script=script).job
    spec = pods.worker_pod(job, 0, "i", ())["spec"]
    (container,) = spec["containers"]
    (mount,) = [m for m in container["volumeMounts"] if m["name"] == "adaptrain-source"]
    assert mount == {"name": "adaptrain-source", "mountPath": "/adaptrain/source", "readOnly": True}
    assert {"name": "adaptrain-source", "configMap": {"name": "code"}} in spec["volumes"]
    assert {"name": "ADAPTRAIN_SOURCE_DIR", "value": "/adaptrain/source"} in container["env"]


GIT = {"command": ["python", "a.py"], "source": {"git": {"url": "https://a/b", "secretRef": {"name": "login"}}}}


def git_world() -> World:
    return World(model=None, data=None, phases=None, script=GIT, workers={"min": 2, "max": 3, "replicas": 2})


def ref_of(pod: Object) -> str:
    (fetching,) = pod["spec"]["initContainers"]
    found: str = next(one["value"] for one in fetching["env"] if one["name"] == "ADAPTRAIN_GIT_REF")
    return found


def fetched(pod: Object, commit: str) -> None:
    done = {"exitCode": 0, "message": commit}
    pod["status"] = {**pod["status"], "initContainerStatuses": [{"state": {"terminated": done}}]}


def test_only_what_fetches_a_scripts_files_sees_the_credentials() -> None:
    spec = pods.worker_pod(git_world().job, 0, "i", ())["spec"]
    (fetching,), (worker,) = spec["initContainers"], spec["containers"]
    assert "login" in str(fetching["env"])
    assert "login" not in str(worker)
    assert fetching["securityContext"] == worker["securityContext"]
    assert {"name": "adaptrain-source", "emptyDir": {"sizeLimit": "10Gi"}} in spec["volumes"]


def test_all_workers_run_the_commit_that_the_first_one_got() -> None:
    world = git_world()
    world.settle()
    first, second = (world.pods[name] for name in world.active())
    assert ref_of(first) == "HEAD"
    fetched(first, "a" * 40)
    world.step()
    assert world.status.source_commit == "a" * 40
    fetched(second, "b" * 40)  # the branch moved on between them
    for _ in range(5):
        world.step()
        world.settle()
    assert second["metadata"]["name"] not in world.active()
    assert len(world.active()) == 2
    assert {ref_of(world.pods[name]) for name in world.active()} == {"HEAD", "a" * 40}


def test_a_commit_that_is_not_there_fails_the_job() -> None:
    world = git_world()
    world.settle()
    pod = world.pods[world.active()[0]]
    ended = {"exitCode": 64, "message": "script.source.git.ref: no such branch", "finishedAt": stamp(world.now)}
    pod["status"] = {
        "phase": "Failed",
        "initContainerStatuses": [{"name": "source", "state": {"terminated": ended}}],
        "containerStatuses": [{"state": {"waiting": {"reason": "PodInitializing"}}}],
    }
    world.step()
    assert world.status.phase == "Failed"
    assert "script.source.git.ref: no such branch" in world.condition("Failed")[2]


def test_a_script_that_never_joins_is_named_with_the_remedy() -> None:
    job = World(model=None, data=None, phases=None, script={"command": ["python", "train.py"]})
    job.settle()
    outside = "uid-job-worker-1"
    job.answer(members=[{"id": "uid-job-worker-0", "name": "0", "step": 0, "joined": T0}], joining=[outside])
    job.now += 65
    job.answer()
    job.step()
    assert job.condition("PodsReady")[1] != "WorkerNotJoined", "it waits to be let in"
    job.answer(joining=[])
    job.step()
    status, reason, message = job.condition("PodsReady")
    assert (status, reason) == ("False", "WorkerNotJoined")
    assert "worker 1 has run since " in message
    assert message.endswith(
        "see kubectl logs job-worker-1 -n ns; a script joins in `with adaptrain.elastic.Elastic(…)`,"
        " one for torchrun needs launcher: torchrun"
    )


def test_a_script_for_torchrun_tells_no_steps_and_shares_out_its_threads() -> None:
    script = {"launcher": "torchrun", "command": ["python", "train.py"]}
    workers = {"processesPerWorker": 2, "resources": {"limits": {"cpu": "4"}}}
    job = World(model=None, data=None, phases=None, script=script, workers=workers)
    job.settle()
    assert job.status.step is None
    assert pods.threads(job.job) == 2
    job.end("job-worker-0", 0, message='{"outcome": "completed", "step": 0, "epoch": 0, "message": "it has ended"}')
    job.step()
    assert job.condition("Complete")[2] == "it has ended"
    assert job.status.step is None
