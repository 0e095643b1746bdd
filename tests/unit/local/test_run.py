"""What ``adaptrain run`` takes and shows."""

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from adaptrain.config.manifest import read_job
from adaptrain.elastic.loop import in_one_line
from adaptrain.errors import InvalidJob
from adaptrain.launch import torchrun
from adaptrain.local.display import Display, Follow
from adaptrain.local.processes import LocalJob
from adaptrain.local.run import _own, from_cluster, share_gpus
from adaptrain_api.contracts.coordinator_api import Change, Progress
from adaptrain_api.training.failures import error_of
from adaptrain_api.training.job import AdaptiveTrainingJob, dump
from rich.console import Console

from tests.support.manifests import small_training

KIND = {"apiVersion": "adaptrain.io/v1alpha1", "kind": "AdaptiveTrainingJob"}


def manifest(folder: Path, *objects: object) -> Path:
    path = folder / "job.yaml"
    path.write_text("\n---\n".join(json.dumps(one) for one in objects))
    return path


def one(**metadata: str) -> dict[str, object]:
    return KIND | {"metadata": metadata, "spec": small_training()}


def display(width: int = 80) -> tuple[Display, io.StringIO]:
    written = io.StringIO()
    return Display(Console(file=written, width=width)), written


def test_a_generated_name_is_the_same_on_each_run(tmp_path: Path) -> None:
    assert read_job(manifest(tmp_path, one(generateName="run-"))).metadata.name == "run"


def test_a_list_is_read_as_kubectl_reads_it(tmp_path: Path) -> None:
    items = [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}, one(name="job")]
    listed = {"apiVersion": "v1", "kind": "List", "items": items}
    assert read_job(manifest(tmp_path, listed)).metadata.name == "job"


def test_of_several_jobs_one_is_chosen_by_name(tmp_path: Path) -> None:
    path = manifest(tmp_path, one(name="a"), one(name="b"))
    assert read_job(path, "b").metadata.name == "b"
    with pytest.raises(InvalidJob, match=r"not 2 \(a, b\): say which one with --name"):
        read_job(path)
    with pytest.raises(InvalidJob, match="named 'c', not 0"):
        read_job(path, "c")


@pytest.mark.parametrize(
    "text", ["\0", "- 1", "a: b", "[" * 5000, "kind: List\nitems: 3", "{kind: AdaptiveTrainingJob, metadata: 3}"]
)
def test_what_is_no_manifest_is_refused_in_words(text: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(InvalidJob, match=r"job\.yaml"):
        read_job(tmp_path / "job.yaml")


def test_bytes_that_are_no_text_are_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidJob, match=r"job\.yaml: "):
        read_job(tmp_path / "job.yaml")


def test_without_a_terminal_each_epoch_and_each_change_is_one_line() -> None:
    shown, written = display()
    progress = Progress(number=1, data_epoch=0, recent_changes=[Change(time=0.0, epoch=1, message="worker-0 joined")])
    for epoch in (0, 0, 1, 1, 2):
        shown.show(progress.model_copy(update={"data_epoch": epoch}), f"epoch {epoch}", ["no room"])
    lines = written.getvalue().splitlines()
    assert [line for line in lines if line.startswith("epoch")] == ["epoch 0", "epoch 1", "epoch 2"]
    assert sum("worker-0 joined" in line for line in lines) == sum(line == "no room" for line in lines) == 1


def test_no_value_is_cut_at_the_width_of_a_terminal() -> None:
    shown, written = display(width=40)
    line = ", ".join(f"val/metric{n}={n}.1234" for n in range(10))
    shown.show(None, line, [])
    assert written.getvalue() == line + "\n"


def test_the_output_of_a_script_is_handed_on_once_in_whole_lines(tmp_path: Path) -> None:
    said: list[str] = []
    follow, log = Follow(said.append), tmp_path / "worker-0.log"
    follow.look(log)
    log.write_bytes(b"one\ntw")
    follow.look(log)
    with log.open("ab") as file:
        file.write(b"o\nthree\n")
    follow.look(log)
    follow.look(log)
    assert said == ["one", "two\nthree"]


@pytest.mark.parametrize(
    ("workers", "visible", "given", "says"),
    [
        (2, "0,1,2", ["0", "1", "2"], ""),
        (1, "0,1", [], ""),
        (2, "", [], ""),
        (3, "GPU-a,GPU-b", [], "3 workers train on CPUs, since there are 2 GPUs: use --workers 2 for GPUs"),
    ],
)
def test_each_worker_has_a_gpu_of_its_own(
    workers: int, visible: str, given: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    shown, written = display(width=200)
    assert share_gpus(workers, shown) == given
    assert written.getvalue().strip() == says


def test_a_line_of_the_log_says_how_training_goes() -> None:
    report = {"step": 12, "data_epoch": 3, "loss": 0.1234, "metrics": {"val/accuracy": 0.9}, "eta_seconds": 7.6}
    assert in_one_line(report, 2) == "epoch 3, step 12, loss 0.1234, val/accuracy=0.9, about 8 s left, 2 workers"
    assert in_one_line({"step": 0, "loss": None}, 1) == "epoch 0, step 0, 1 worker"


def test_an_output_folder_is_of_one_training_for_however_long_that_goes_on(tmp_path: Path) -> None:
    def given(**changed: Any) -> AdaptiveTrainingJob:
        spec = small_training()
        spec["phases"][0] |= changed
        return AdaptiveTrainingJob.model_validate({"metadata": {"name": "r"}, "spec": spec})

    first = given()
    assert first.spec.phases is not None
    _own(tmp_path / "out", first)
    _own(tmp_path / "out", given(stop={"epochs": 77}))
    other = given(optimizer={"learningRate": 0.77})
    with pytest.raises(
        InvalidJob, match=r"learningRate is .* there, and 0\.77 in this manifest; choose another --output"
    ):
        _own(tmp_path / "out", other)
    (named := dump(other))["spec"]["checkpoint"] = {
        "volume": {"persistentVolumeClaim": {"claimName": "c"}},
        "resumeFrom": f"step-{7:010d}.4294967297",
    }
    _own(tmp_path / "out", AdaptiveTrainingJob.model_validate(named))
    _own(tmp_path / "out", other)


def with_env(*env: dict[str, object]) -> AdaptiveTrainingJob:
    spec = {"workers": {"max": 1, "env": [*env]}, "script": {"command": ["python", "train.py"]}}
    return AdaptiveTrainingJob.model_validate({"metadata": {"name": "a"}, "spec": spec})


def test_local_workers_have_the_environment_that_the_manifest_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    key = {"secretKeyRef": {"name": "s", "key": "k"}}
    job = with_env(
        {"name": "CACHE", "value": "$(HOME)/cache"},
        {"name": "HF_HOME", "value": "$(CACHE)/hf"},
        {"name": "EMPTY"},
        {"name": "SECRET", "valueFrom": key},
    )
    with LocalJob(job) as local:
        given = local.given
    assert given == {"CACHE": "/home/me/cache", "HF_HOME": "/home/me/cache/hf", "EMPTY": ""}


def test_what_only_a_cluster_has_is_said_unless_the_shell_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    job = with_env({"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}})
    monkeypatch.delenv("TOKEN", raising=False)
    assert from_cluster(job) == ["workers.env TOKEN"]
    monkeypatch.setenv("TOKEN", "t")
    assert from_cluster(job) == []


def test_a_script_that_a_signal_ended_is_not_blamed_on_what_it_said_before() -> None:
    command = ["sh", "-c", "echo a warning >&2; kill -9 $$"]
    process = torchrun.Process(command, {**os.environ, "RANK": "1"})
    process.wait(30)
    end = torchrun.end_of([process])
    assert end is not None
    assert end.exit_code == 137
    assert end.message == "a warning\nthe script's rank 1 ended by SIGKILL"
    assert error_of(end.message) == "the script's rank # ended by SIGKILL"
