"""Checkpoints in a bucket of a real S3 server, of jobs of local processes."""

import contextlib
import multiprocessing
import os
import random
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import fsspec
import obstore
import obstore.fsspec
import pytest
import torch
import yaml
from adaptrain.elastic.checkpoint.manager import Checkpoints, Policy
from adaptrain.elastic.membership.client import CoordinatorClient
from adaptrain.elastic.state.replicated import ReplicatedState
from adaptrain.elastic.storage.directory import Directory
from adaptrain.elastic.storage.object_store import ObjectStore
from adaptrain.errors import InvalidJob
from adaptrain.local.processes import LocalJob, forkserver_context
from adaptrain.local.run import run_manifest
from adaptrain_api.contracts.coordinator_api import Progress
from adaptrain_api.training.job import dump
from obstore.store import S3Store
from safetensors.torch import load as load_weights

from tests.e2e.local_jobs import check_samples, final_tensors, finished, job, running, step_of, wait_for
from tests.support.s3 import KEYS, S3Server

SAMPLES, BATCH = 1078, 64


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with S3Server(tmp_path / "s3") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.bucket("models")
        yield server


def spec(**more: Any) -> dict[str, Any]:
    return {"uri": "s3://models/team-a", "secretRef": {"name": "keys"}, "everySeconds": 1, "keep": 2, **more}


def saved() -> list[str]:
    """The folders of all whole checkpoints, the newest first."""
    return [one.name for one in ObjectStore("s3://models/team-a/default.test").saved() if one.complete]


def saved_step(local: LocalJob) -> int:
    return (local.progress() or Progress(number=0)).checkpoint_step or 0


def kill_all(local: LocalJob) -> None:
    for number in local.alive():
        local.signal(number, signal.SIGKILL)
    wait_for("all dead", lambda: not local.alive())


def test_training_on_a_bucket(tmp_path: Path, s3: S3Server) -> None:
    """Kills, a spoiled object, a server that is away: nothing is lost but what was trained since the checkpoint."""
    with LocalJob(job(checkpoint=spec()), trace=tmp_path / "trace") as local:
        local.start_coordinator()
        for _ in range(2):
            local.start_worker()
        running(local, 2)
        wait_for("two checkpoints", lambda: len(saved()) == 2, local)
        kill_all(local)

        # One object of the newest checkpoint is spoiled: the one before it is used, and it is said.
        newest, older = saved()[:2]
        store = S3Store("models", prefix="team-a/default.test", client_options={"allow_http": True})
        spoiled = bytearray(obstore.get(store, f"{newest}/tensors-0.safetensors").bytes())
        spoiled[len(spoiled) // 2] ^= 1
        obstore.put(store, f"{newest}/tensors-0.safetensors", bytes(spoiled))
        resumed = local.start_worker()
        where = f"resumed from s3://models/team-a/default.test/{older}"
        wait_for("a resumption", lambda: where in local.log(f"worker-{resumed}"), local)
        assert f"{newest} can't be used (tensors-0.safetensors has digest" in local.log(f"worker-{resumed}")
        progress = running(local, 1)
        assert any("can't be used" in change.message for change in progress.recent_changes)

        # The server is away for a while: training goes on, and says what is wrong with its checkpoints.
        local.start_worker()
        running(local, 2)
        s3.stop()
        before = step_of(local)
        wait_for("the trouble is told", lambda: "can't be reached" in error(local), local)
        wait_for("more steps", lambda: step_of(local) > before + 20, local)
        s3.start()
        at = step_of(local)
        wait_for("a newer checkpoint", lambda: saved_step(local) > at and not error(local), local)

        # Who starts while it is away waits for it, rather than to begin anew.
        kill_all(local)
        s3.stop()
        waiting = local.start_worker()
        wait_for("the wait is told", lambda: "training waits for its checkpoints" in error(local), local)
        assert step_of(local) == 0
        s3.start()
        wait_for("a step", lambda: step_of(local) > at, local)
        assert "resumed from" in local.log(f"worker-{waiting}")
        for number in local.alive():
            local.signal(number, signal.SIGTERM)
        wait_for("all to leave", lambda: not local.alive(), local)
        steps = max(r.step for n in local.workers if (r := local.result(n)) is not None)
        for name in [f"worker-{n}" for n in local.workers] + ["coordinator-1"]:
            assert KEYS["AWS_SECRET_ACCESS_KEY"] not in local.log(name)
    assert check_samples(tmp_path / "trace", SAMPLES, BATCH, steps) == steps
    last = next(name for name in saved() if name != newest)  # which is of a step that may not have come again
    assert int(last.split(".")[0].split("-")[1]) == steps, "the last to leave saves"
    check_against_an_undisturbed_run(tmp_path, steps)


class Saver:
    """Saves again and again, as the first member of a lineage would."""

    def __init__(self, where: str, epoch: int) -> None:
        model = torch.nn.Linear(1000, 1000)
        self.state = ReplicatedState(model, torch.optim.SGD(model.parameters(), lr=0.1))
        control = SimpleNamespace(
            epoch=epoch, may_commit=True, connected=True, note=lambda _: None, doing=lambda *_: contextlib.nullcontext()
        )
        storage = ObjectStore(where) if where.startswith("s3:") else Directory(Path(where))
        self._checkpoints = Checkpoints(storage, Policy(keep=2), cast(CoordinatorClient, control))

    def load(self) -> int:
        """The step that was restored; 0: none."""
        if not self._checkpoints.load(self.state):
            return 0
        step = self.state.counters.step
        assert all(bool((p == step).all()) for p in self.state.model.parameters()), "parts of two checkpoints"
        return step

    @torch.no_grad()
    def go_on(self, step: int) -> None:
        self.state.counters.step = step
        for p in self.state.model.parameters():
            p.fill_(step)
        self._checkpoints.save(self.state)


def save_for_ever(where: str, epoch: int, environment: dict[str, str], saved: Connection) -> None:
    os.environ.update(environment)
    saver = Saver(where, epoch)
    step = saver.load()
    while True:
        step += 1
        saver.go_on(step)
        saved.send(step)


@pytest.mark.parametrize("where", ["directory", "s3://models/killed"])
def test_whoever_is_killed_while_saving_leaves_the_newest_whole_checkpoint(
    tmp_path: Path, s3: S3Server, where: str
) -> None:
    chance = random.Random(4)
    where = where if "://" in where else str(tmp_path / where)
    for epoch in range((1 << 32) + 1, (1 << 32) + 7):
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = forkserver_context().Process(
            target=save_for_ever, args=(where, epoch, s3.environment, theirs), daemon=True
        )
        process.start()
        theirs.close()
        told = ours.recv()
        process.join(chance.uniform(0, 0.1))
        process.kill()
        process.join()
        with contextlib.suppress(EOFError):
            while True:
                told = ours.recv()
        assert Saver(where, epoch).load() in (told, told + 1), "the last one may have been saved and not told"


def error(local: LocalJob) -> str:
    return (local.progress() or Progress(number=0)).checkpoint_error or ""


def check_against_an_undisturbed_run(tmp_path: Path, steps: int) -> None:
    with LocalJob(job(phase={"stop": {"steps": steps}}), checkpoints=tmp_path / "reference") as local:
        local.start_coordinator()
        local.start_worker()
        assert finished(local).step == steps
    expected = final_tensors(tmp_path / "reference")
    obstore.fsspec.register("s3")
    where = f"s3://models/team-a/default.test/{saved()[0]}/tensors-0.safetensors"
    with fsspec.open(where, client_options={"allow_http": True}) as file:
        found = load_weights(file.read())
    assert max(float((found[name] - t).abs().max()) for name, t in expected.items()) < 1e-9


def test_a_manifest_with_a_bucket_runs_on_this_machine(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = job(checkpoint=spec(verify=True, keepBest=True), phase={"stop": {"epochs": 4}})
    manifest = tmp_path / "job.yaml"
    manifest.write_text(yaml.safe_dump(dump(given)))
    monkeypatch.chdir(tmp_path)
    assert run_manifest(manifest, None, None) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "the model is s3://models/team-a/default.test/model.safetensors" in told
    assert {path.name for path in tmp_path.iterdir()} == {"job.yaml", "s3", "s3.log", "adaptrain-runs"}
    assert {path.name for path in (tmp_path / "adaptrain-runs/test").iterdir()} == {"logs"}
    weights = load_weights((tmp_path / "s3/models/team-a/default.test/model.safetensors").read_bytes())
    assert all(bool(t.isfinite().all()) for t in weights.values())
    with pytest.raises(
        InvalidJob, match=r"--output here: this job's checkpoints and model go to spec\.checkpoint\.uri"
    ):
        run_manifest(manifest, None, Path("here"))
