"""A script's folder, its packages, and how it is told to resume: on a cluster as under ``adaptrain run``."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from adaptrain.errors import InvalidJob
from adaptrain.launch.torchrun import expanded, resume_arguments
from adaptrain.local.run import run_manifest
from adaptrain.process import packages, workspace
from adaptrain_api.contracts.coordinator_api import EXIT_INVALID
from adaptrain_api.manifest import documents
from adaptrain_api.search.job import ArchitectureSearch
from adaptrain_api.training.job import AdaptiveTrainingJob
from adaptrain_api.training.script import Script
from adaptrain_operator.core import naming
from adaptrain_operator.core.job.exit_reason import ExitClass, ending
from adaptrain_operator.core.objects.pods import worker_pod
from adaptrain_operator.core.observed import Pod

from tests.support.operator_world import Object, World
from tests.support.paths import ROOT


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A mounted ConfigMap, as the kubelet lays it out, and where to work."""
    source, hidden = tmp_path / "source", tmp_path / "source" / "..2026_12_01"
    hidden.mkdir(parents=True)
    (hidden / "train.py").write_text("print('hello')")
    (hidden / "train.py").chmod(0o444)
    (source / "..data").symlink_to(hidden.name)
    (source / "train.py").symlink_to("..data/train.py")
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != source and access(path, mode))
    monkeypatch.setenv("ADAPTRAIN_SOURCE_DIR", str(source))
    monkeypatch.setenv("ADAPTRAIN_WORK_DIR", str(tmp_path / "work"))
    monkeypatch.chdir(tmp_path)
    return source


def test_a_config_maps_files_are_run_from_a_copy_that_can_be_written(read_only: Path, tmp_path: Path) -> None:
    read_only.chmod(0o555)
    (work := tmp_path / "work").mkdir(mode=0o777)
    before = work.stat()
    workspace.enter()
    assert Path.cwd() == work / "files"
    assert work.stat().st_mode == before.st_mode, "the volume's own folder is the kubelet's"
    assert sorted(one.name for one in Path().iterdir()) == ["train.py"], "not the kubelet's own folders"
    assert not Path("train.py").is_symlink()
    assert Path("train.py").stat().st_mode & 0o200
    Path("snapshot.pt").write_text("x")
    assert not (read_only / "snapshot.pt").exists()
    workspace.enter()  # by a worker that is started again
    assert Path("snapshot.pt").exists()


def test_what_can_be_written_is_not_copied(read_only: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A git repository in the pod's own volume, and everything under ``adaptrain run``."""
    monkeypatch.undo()
    monkeypatch.setenv("ADAPTRAIN_SOURCE_DIR", str(read_only))
    monkeypatch.chdir(tmp_path)
    workspace.enter()
    assert Path.cwd() == read_only
    monkeypatch.setenv("ADAPTRAIN_SOURCE_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(InvalidJob, match=r"script\.source: .*nowhere can't be entered"):
        workspace.enter()


def test_an_images_folder_is_copied_if_it_is_small(read_only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADAPTRAIN_SOURCE_DIR")
    monkeypatch.chdir(read_only)
    monkeypatch.setattr(workspace, "MOST_FILES", 2)
    workspace.enter()
    assert Path.cwd() == read_only, "too many files"
    monkeypatch.setattr(workspace, "MOST_FILES", 20)
    workspace.enter()
    assert Path.cwd().name == "files"


@pytest.mark.parametrize(
    ("source", "copied"),
    [({"configMap": {"name": "code"}}, True), ({"git": {"url": "https://a/b"}}, False), (None, True)],
)
def test_a_pod_has_room_to_write_beside_the_script(source: Object | None, copied: bool) -> None:
    script = {"command": ["python", "a.py"], **({} if source is None else {"source": source})}
    spec = worker_pod(World(model=None, data=None, phases=None, script=script).job, 0, "i", ())["spec"]
    (container,) = spec["containers"]
    env = {one["name"]: one.get("value") for one in container["env"]}
    mounts = {one["mountPath"]: one for one in container["volumeMounts"]}
    folder = env["ADAPTRAIN_WORK_DIR" if copied else "ADAPTRAIN_SOURCE_DIR"]
    assert not mounts[folder].get("readOnly")
    (volume,) = [one for one in spec["volumes"] if one["name"] == mounts[folder]["name"]]
    assert volume["emptyDir"]["sizeLimit"], "bounded, else it fills the node's disk"


def wheel(folder: Path, name: str, version: str, requires: str = "") -> None:
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", f"version = {version!r}\n")
        more = f"Requires-Dist: {requires}\n" if requires else ""
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{more}")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "index"
    folder.mkdir()
    wheel(folder, "adapted", "1.0", "numpy>=1")
    wheel(folder, "adapted", "2.0", "numpy<1")
    wheel(folder, "numpy", "0.9")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.mark.usefixtures("index")
def test_packages_are_installed_beside_what_the_image_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    into = tmp_path / "into"
    packages.install(["adapted==1.0"], into, tmp_path / "cache")
    packages.install(["adapted==1.0"], into)  # by an init container that is started again
    assert {one.name for one in packages.site_packages(into).iterdir()} >= {"adapted.py"}
    assert not list(packages.site_packages(into).glob("numpy*")), "the image has it"
    monkeypatch.setenv("ADAPTRAIN_PACKAGES_DIR", str(into))
    monkeypatch.setenv("PYTHONPATH", "/mine")
    workspace.enter()
    assert os.environ["PYTHONPATH"].startswith("/mine:")
    code = "import adapted, numpy; print(adapted.version, numpy.__version__ != '0.9')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1.0 True\n"


@pytest.mark.usefixtures("index")
@pytest.mark.parametrize(
    ("package", "words"), [("adapted==3.0", "No matching distribution"), ("adapted==2.0", "ResolutionImpossible")]
)
def test_packages_that_cannot_be_had_are_told(package: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidJob, match=f"script.packages can't be installed .*{words}.*an image of your own"):
        packages.install([package], tmp_path / "into")


def test_an_index_that_cannot_be_asked_is_not_the_jobs_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(OSError, match="package index can't be asked"):
        packages.install(["adapted==1.0"], tmp_path / "into")


def test_packages_come_from_an_init_container_with_the_workers_environment() -> None:
    cache = {"persistentVolumeClaim": {"claimName": "wheels"}}
    script = {"command": ["a"], "packages": ["timm==1.0.22", "einops==0.8.1"], "packageCache": cache}
    workers = {"env": [{"name": "PIP_INDEX_URL", "value": "https://mirror"}], "envFrom": [{"secretRef": {"name": "s"}}]}
    checkpoint = {"volume": {"persistentVolumeClaim": {"claimName": "wheels"}}}
    world = World(model=None, data=None, phases=None, script=script, workers=workers, checkpoint=checkpoint)
    spec = worker_pod(world.job, 0, "i", ())["spec"]
    (init,), (worker,) = spec["initContainers"], spec["containers"]
    env = {one["name"]: one.get("value") for one in init["env"]}
    assert (init["command"], init["image"]) == (["adaptrain", "packages"], "i")
    assert env["ADAPTRAIN_PACKAGES"].split() == script["packages"]
    assert env["PIP_INDEX_URL"] == "https://mirror"
    assert init["envFrom"] == [{"secretRef": {"name": "s"}}]
    assert {"cpu", "memory"} <= init["resources"]["limits"].keys()
    mounts = {one["mountPath"]: one for one in init["volumeMounts"]}
    seen = {one["mountPath"]: one for one in worker["volumeMounts"]}
    assert mounts[env["ADAPTRAIN_PACKAGES_DIR"]]["name"] == seen[env["ADAPTRAIN_PACKAGES_DIR"]]["name"]
    assert seen[env["ADAPTRAIN_PACKAGES_DIR"]]["readOnly"] is True
    names = {one["name"] for one in spec["volumes"]}
    assert {one["name"] for one in (*mounts.values(), *seen.values())} <= names
    claims = [one for one in spec["volumes"] if "persistentVolumeClaim" in one]
    assert len(claims) == 1, "a pod with two volumes of one claim may never start"


def test_packages_that_cannot_be_installed_end_the_job_at_once() -> None:
    ended = {"name": naming.PACKAGES, "state": {"terminated": {"exitCode": EXIT_INVALID, "message": "no such package"}}}
    status = {"phase": "Failed", "initContainerStatuses": [ended]}
    pod = Pod.read({"metadata": {"name": "job-worker-0", "uid": "u"}, "spec": {}, "status": status})
    assert ending(pod) is ExitClass.INVALID


def test_adaptrain_run_wants_the_packages_before_anything_starts(tmp_path: Path) -> None:
    manifest = tmp_path / "job.yaml"
    body = {
        "apiVersion": "adaptrain.io/v1alpha1",
        "kind": "AdaptiveTrainingJob",
        "metadata": {"name": "job"},
        "spec": {"script": {"command": ["python", "-c", "0"], "packages": ["numpy==0.1", "no.such_thing==1.0"]}},
    }
    manifest.write_text(json.dumps(body))
    with pytest.raises(
        InvalidJob, match=r"script.packages: numpy==0.1 no.such_thing==1.0 can't be imported here: run "
    ):
        run_manifest(manifest, None, tmp_path / "out")
    assert packages.missing([f"pytest=={pytest.__version__}"]) == []


@pytest.mark.parametrize(
    ("files", "resume_file", "resumes"),
    [
        ([], None, False),
        (["anything"], None, True),
        (["log.txt"], "ckpt.pt", False),
        (["log.txt", "ckpt.pt"], "ckpt.pt", True),
        (["run/checkpoint-500"], "run/checkpoint-*", True),
    ],
)
def test_arguments_to_resume_are_added_once_there_is_something(
    files: list[str], resume_file: str | None, resumes: bool, tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "ckpt-old").symlink_to("what was removed meanwhile")
    given: dict[str, Any] = {"launcher": "torchrun", "command": ["a"], "resume_args": ["--resume", "x"]}
    script = Script(**given, resume_file=resume_file)
    assert resume_arguments(script, tmp_path) == (["--resume", "x"] if resumes else [])
    assert resume_arguments(script, None) == []


def test_the_newest_checkpoint_that_is_whole_is_resumed_from(tmp_path: Path) -> None:
    """As transformers' Trainer saves: trainer_state.json comes last, so a save that was killed has none."""
    for time, (folder, whole) in enumerate(
        [("checkpoint-500", True), ("checkpoint-1000", True), ("checkpoint-1500", False)]
    ):
        (tmp_path / folder).mkdir()
        for name in ("model.safetensors", *(["trainer_state.json"] if whole else [])):
            (tmp_path / folder / name).touch()
            os.utime(tmp_path / folder / name, (time, time))
    given = ["--resume_from_checkpoint", "$(ADAPTRAIN_RESUME_DIR)", "$(ADAPTRAIN_RESUME_FILE)"]
    script = Script(
        launcher="torchrun", command=["a"], resume_args=given, resume_file="checkpoint-*/trainer_state.json"
    )
    whole = tmp_path / "checkpoint-1000"
    assert resume_arguments(script, tmp_path)[1:] == [str(whole), str(whole / "trainer_state.json")]


def test_a_command_names_variables_as_a_containers_does() -> None:
    env = {"ADAPTRAIN_CHECKPOINT_DIR": "/c", "RANK": "1"}
    given = ["python", "--out=$(ADAPTRAIN_CHECKPOINT_DIR)/a", "$(RANK)", "$(unknown) $RANK $(date +%s)"]
    assert expanded(given, env) == ["python", "--out=/c/a", "1", "$(unknown) $RANK $(date +%s)"]


@pytest.mark.parametrize("path", sorted((ROOT / "examples").rglob("*.yaml")), ids=lambda path: path.name)
def test_examples_are_valid(path: Path) -> None:
    kinds = {"AdaptiveTrainingJob": AdaptiveTrainingJob, "ArchitectureSearch": ArchitectureSearch}
    for document in documents(path.read_text()):
        if (kind := kinds.get(document["kind"])) is not None:
            kind.model_validate(document)
