"""The elastic core under faults, as local processes: nothing is lost, nothing is repeated, nobody hangs."""

import json
import shutil
import signal
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from adaptrain.data.digits import digits
from adaptrain.local.processes import LocalJob
from adaptrain.models.registry import build_model
from adaptrain_api.components import ModelSource
from safetensors import safe_open

from tests.e2e.local_jobs import (
    check_samples,
    finished,
    job,
    largest_difference,
    running,
    step_of,
    wait_for,
)

SAMPLES, BATCH = 1078, 64


class Run:
    """A job that goes on until it is stopped; then it is held against one that nothing disturbed."""

    def __init__(self, path: Path, **spec: Any) -> None:
        self.path = path
        self._spec = spec
        self.local = LocalJob(job(**spec), checkpoints=path / "checkpoints", trace=path / "trace")

    def __enter__(self) -> LocalJob:
        self.local.start_coordinator()
        return self.local.__enter__()

    def __exit__(self, *error: object) -> None:
        self.local.__exit__(*error)

    def go_on(self, steps: int = 30) -> None:
        """Wait until that many more steps were taken."""
        begin = wait_for("a step", lambda: step_of(self.local), self.local)
        wait_for(f"step {begin + steps}", lambda: step_of(self.local) >= begin + steps, self.local)

    def stop(self) -> int:
        """Ask all workers to leave. Returns the step at which they did."""
        for number in self.local.alive():
            self.local.signal(number, signal.SIGTERM)
        wait_for("all to leave", lambda: not self.local.alive(), self.local)
        return max(r.step for n in self.local.workers if (r := self.local.result(n)) is not None)

    def check(self, steps: int) -> None:
        """The same samples and the same parameters as in a run of one worker that nothing disturbed."""
        assert check_samples(self.path / "trace", SAMPLES, BATCH) == steps
        reference = self.path / "reference"
        phase = self._spec.get("phase", {}) | {"stop": {"steps": steps}}
        alone = self._spec | {"phase": phase, "workers": {"min": 1, "max": 1}}
        with LocalJob(job(**alone), checkpoints=reference) as local:
            local.start_coordinator()
            local.start_worker()
            assert finished(local).step == steps
        assert largest_difference(reference, self.path / "checkpoints") < 1e-9


def test_kills_joins_and_farewells_change_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run as local:
        first, second = local.start_worker(), local.start_worker()
        running(local, 2)
        third = local.start_worker()
        running(local, 3)
        run.go_on()
        local.signal(second, signal.SIGKILL)
        progress = running(local, 2)
        run.go_on()
        local.signal(first, signal.SIGTERM)
        running(local, 1)
        fourth = local.start_worker()
        progress = running(local, 2)
        assert {m.id for m in progress.members} == {str(third), str(fourth)}
        run.go_on()
        assert local.workers[first].exitcode == 0
        left = local.result(first)
        assert left is not None
        assert left.outcome == "left"
        assert any(c.stall is not None for c in progress.recent_changes)
        steps = run.stop()
    run.check(steps)


def test_a_hung_worker_is_left_behind(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run as local:
        numbers = [local.start_worker() for _ in range(3)]
        running(local, 3)
        local.signal(numbers[0], signal.SIGSTOP)
        running(local, 2)
        wait_for("it to be given up", lambda: (p := local.progress()) is not None and p.silent, local)
        progress = local.progress()
        assert progress is not None
        assert [s.id for s in progress.silent] == [str(numbers[0])]
        local.signal(numbers[0], signal.SIGKILL)
        run.go_on()
        steps = run.stop()
    run.check(steps)


def test_training_goes_on_without_its_coordinator(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run as local:
        for _ in range(2):
            local.start_worker()
        running(local, 2)
        assert local.coordinator is not None
        local.coordinator.kill()
        local.coordinator.wait()
        trace = tmp_path / "trace" / "worker-0.jsonl"
        size = trace.stat().st_size
        wait_for("steps without a coordinator", lambda: trace.stat().st_size > size + 20_000, local)
        local.start_coordinator()
        progress = running(local, 2)
        assert progress.number == 2
        assert any("took over" in change.message for change in progress.recent_changes)
        run.go_on()
        steps = run.stop()
    run.check(steps)


def test_all_killed_resume_from_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = {"volume": {"persistentVolumeClaim": {"claimName": "x"}}, "everySeconds": 1, "keep": 2}
    run = Run(tmp_path, checkpoint=checkpoint)
    with run as local:
        for _ in range(2):
            local.start_worker()
        wait_for("a checkpoint", lambda: list((tmp_path / "checkpoints").glob("step-*")), local)
        for number in local.alive():
            local.signal(number, signal.SIGKILL)
        wait_for("all dead", lambda: not local.alive())
        resumed = local.start_worker()
        running(local, 1)
        run.go_on()
        assert "resumed from" in local.log(f"worker-{resumed}")
        steps = run.stop()
    assert len(list((tmp_path / "checkpoints").glob("step-*"))) <= 2
    run.check(steps)


def test_all_that_are_asked_to_leave_lose_no_step(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run as local:
        workers = [local.start_worker() for _ in range(2)]
        running(local, 2)
        step = run.stop()
        assert [local.workers[n].exitcode for n in workers] == [0, 0]
        assert list((tmp_path / "checkpoints").glob(f"step-{step:010d}.*")), "the last to leave did not save"
        again = local.start_worker()
        running(local, 1)
        run.go_on()
        assert f"resumed from {tmp_path / 'checkpoints' / f'step-{step:010d}'}" in local.log(f"worker-{again}")
        steps = run.stop()
    run.check(steps)


def test_the_model_that_is_left_is_the_best(tmp_path: Path) -> None:
    with LocalJob(job(phase={"stop": {"epochs": 4}}), checkpoints=tmp_path) as local:
        local.start_coordinator()
        local.start_worker()
        progress = finished(local)
    assert progress.result is not None
    assert progress.result.model == "model.safetensors"
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        weights = {name: file.get_tensor(name) for name in set(file.keys())}
    data = digits()
    model = build_model(ModelSource(name="mlp", args={"dtype": "float64"}), data)
    model.load_state_dict(weights)
    assert data.test is not None
    x, y = data.test.fetch(torch.arange(len(data.test)))
    accuracy = (model(x.double()).argmax(1) == y).double().mean()
    assert float(accuracy) == pytest.approx(progress.result.metrics["test/accuracy"])


def test_a_spoiled_checkpoint_is_passed_over(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run as local:
        local.start_worker()
        running(local, 1)
        run.go_on()
        run.stop()
        (good,) = (tmp_path / "checkpoints").glob("step-*")
        bad = good.with_name(f"step-{10**9:010d}.{(9 << 32) + 1}")
        bad.mkdir()
        (bad / "counters.json").write_text("{}")
        number = local.start_worker()
        running(local, 1)
        run.go_on()
        steps = run.stop()
        assert f"checkpoint {bad} can't be used (manifest.json is missing)" in local.log(f"worker-{number}")
        assert f"resumed from {good}" in local.log(f"worker-{number}")
    shutil.rmtree(bad)
    run.check(steps)


def test_a_slow_worker_gets_fewer_samples(tmp_path: Path) -> None:
    model = {"name": "tests.faults.model:mlp", "args": {"seconds": 0.002, "seconds_per_sample": 0.0004}}
    run = Run(tmp_path, model=model)
    with run as local:
        for _ in range(2):
            local.start_worker()
        slow = local.start_worker(SLOWNESS="5")
        running(local, 3)

        def named() -> bool:
            progress = local.progress()
            return progress is not None and any("computes slowly" in c.message for c in progress.recent_changes)

        wait_for("the slow worker is named", named, local)
        steps = run.stop()
    counts = {
        path.stem: [len(said["ids"]) for said in map(json.loads, path.read_text().splitlines()) if "ids" in said]
        for path in (tmp_path / "trace").glob("*.jsonl")
    }
    late = {name: sum(given[-60:-20]) / 40 for name, given in counts.items()}
    assert late.pop(f"worker-{slow}") < 0.6 * min(late.values())
    assert check_samples(tmp_path / "trace", SAMPLES, BATCH) == steps


def test_strangers_change_nothing(tmp_path: Path) -> None:
    with LocalJob(job(phase={"stop": {"steps": 150}}), checkpoints=tmp_path) as local:
        local.start_coordinator()
        local.start_worker()
        before = running(local, 1)
        address = local.control_address
        for said in (b"", b"\0" * 100_000, b"{}\n", b'{"is": "hello", "token": "wrong"}\n', b"[" * 60_000 + b"\n"):
            wait_for("the stranger to be sent away", lambda said=said: sent_away(address, said))
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(local.http_address + "/progress")
        assert running(local, 1).epoch == before.epoch
        finished(local)


def sent_away(address: tuple[str, int], said: bytes) -> bool:
    with socket.create_connection(address) as sock:
        try:
            sock.sendall(said)
            sock.shutdown(socket.SHUT_WR)
            said = b"".join(iter(lambda: sock.recv(1000), b""))
            return said.count(b"\n") == 1 and b"challenge" in said
        except ConnectionError:
            return True


@pytest.mark.parametrize(
    ("model", "code", "says"),
    [
        ({"name": "resnet", "args": {"depth": 9}}, 64, "depth must be 6n + 2"),
        ({"name": "nowhere:model"}, 64, "no module 'nowhere' in this image"),
    ],
)
def test_a_job_that_cannot_run_is_not_tried_again(model: dict[str, object], code: int, says: str) -> None:
    with LocalJob(job(model=model)) as local:
        local.start_coordinator()
        number = local.start_worker()
        wait_for("the worker's end", lambda: not local.alive(), local)
        assert local.workers[number].exitcode == code
        result = local.result(number)
        assert result is not None
        assert says in result.message
