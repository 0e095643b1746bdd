"""Which checkpoint training goes on from, and which it refuses: another training's, one that is bad, one unsealed."""

import errno
import io
import json
import os
import pickle
from typing import Any, cast

import pytest
import torch
import xxhash
from adaptrain.elastic.checkpoint import file_format, manager
from adaptrain.elastic.checkpoint.manager import Checkpoints, Policy
from adaptrain.elastic.checkpoint.origin import Origin
from adaptrain.elastic.membership.client import CoordinatorClient
from adaptrain.elastic.storage.directory import Directory
from adaptrain.elastic.storage.lineage import Held, claim
from adaptrain.errors import InvalidJob
from adaptrain_api.training.job import AdaptiveTrainingJob

from tests.unit.conftest import Place
from tests.unit.elastic.checkpoint.test_checkpoint import Worker, steps, wait


def job(uid: str = "a", checkpoint: dict[str, Any] | None = None, **changed: Any) -> Origin:
    """The origin of a job on digits, in which some fields of the spec or of its phase are changed."""
    phase = {"name": "t", "type": "supervised", "optimizer": {"learningRate": 0.01}, "batch": {"size": 64},
             "stop": {"epochs": 2}}  # fmt: skip
    phase |= {name: changed.pop(name) for name in ("optimizer", "batch", "stop", "nonFinite") if name in changed}
    spec = {"workers": {"min": 1, "max": 2}, "model": {"name": "mlp"}, "data": {"name": "digits"}, "phases": [phase]}
    where = {"volume": {"persistentVolumeClaim": {"claimName": "c"}}} | (checkpoint or {})
    given = {"metadata": {"name": "r", "uid": uid}, "spec": spec | {"checkpoint": where} | changed}
    return Origin.of(AdaptiveTrainingJob.model_validate(given))


def worker(place: Place, origin: Origin, number: int = 1, key: bytes | None = None) -> Worker:
    made = Worker(place, number)
    rules = Policy(every_seconds=0)
    made.checkpoints = Checkpoints(place.storage, rules, cast(CoordinatorClient, made.control), origin=origin, key=key)
    return made


def test_the_same_manifest_applied_again_goes_on_and_saves(place: Place) -> None:
    for number in (1, 2):
        worker(place, job("a"), number).save(number)
    again = worker(place, job("b"))
    assert again.load() == 2
    again.save(3)
    assert steps(place)[0] == 3
    assert worker(place, job("c")).load() == 3


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (
            {"optimizer": {"learningRate": 0.05}},
            r"spec\.phases\[0\]\.optimizer\.learningRate is 0\.01 there, and 0\.05",
        ),
        ({"seed": 7}, r"spec\.seed is not given there, and 7 in this manifest"),
        ({"model": {"name": "mlp", "args": {"width": 3}}}, r'spec\.model\.args is not given there, and \{"width": 3\}'),
        ({"data": {"name": "own:data"}}, r'spec\.data\.name is "digits" there, and "own:data" in this manifest'),
        ({"batch": {"size": 32}}, r"spec\.phases\[0\]\.batch\.size is 64 there, and 32"),
    ],
)
def test_another_training_is_refused_with_both_values_and_the_remedy(
    place: Place, changed: dict[str, Any], says: str
) -> None:
    worker(place, job("a")).save(1)
    with pytest.raises(InvalidJob, match=says) as caught:
        worker(place, job("b", **changed)).load()
    assert "checkpoint.resumeFrom: step-0000000001." in str(caught.value)
    assert steps(place) == [1], "what is refused is not touched, nor claimed"
    worker(place, job("a")).save(2)


@pytest.mark.parametrize(
    "changed",
    [
        {"stop": {"epochs": 8}},
        {"stop": {"steps": 5}},
        {"nonFinite": "skip"},
        {"batch": {"size": 64, "microSize": 8}},
        {"workers": {"min": 2, "max": 9}},
        {"maxRestarts": 3},
        {"checkpoint": {"everySeconds": 5, "keep": 9}},
        {"seed": 0},
    ],
)
def test_a_changed_budget_goes_on(place: Place, changed: dict[str, Any]) -> None:
    first = worker(place, job("a"))
    first.state.counters.stopped = "2 epochs"
    first.state.counters.metrics = {"val/loss": 1.0, "test/accuracy": 0.9}
    first.save(4)
    second = worker(place, job("b", **changed))
    assert second.load() == 4
    ends = "stop" not in changed
    assert bool(second.state.counters.stopped) == ends, "a training with another end is not at its end"
    assert ("test/accuracy" in second.state.counters.metrics) == ends


def test_a_named_checkpoint_is_gone_on_from_whatever_it_is_of(place: Place) -> None:
    worker(place, job("a")).save(5)
    (name,) = [one.name for one in place.storage.saved()]
    changed = job("b", {"resumeFrom": name}, seed=7)
    second = worker(place, changed)
    assert second.load() == 5
    assert second.state.counters.best == {}
    second.save(6)
    assert worker(place, changed, 2).load() == 6, "its own come first from then on"
    for step in (7, 8, 9, 10):
        second = worker(place, changed, step)
        second.save(step)
    assert name in [one.name for one in place.storage.saved()], "what is of another training stays"


def test_a_named_checkpoint_in_another_jobs_folder(place: Place) -> None:
    worker(place, job("a")).save(5)
    (name,) = [one.name for one in place.storage.saved()]
    beside = Place(place.storage.beside("default.other"), place.root.parent / "default.other")
    if isinstance(beside.storage, Directory):
        beside = Place(Directory(beside.root), beside.root)
    folder = place.root.name
    assert worker(beside, job("b", {"resumeFrom": f"{folder}/{name}"}, seed=7)).load() == 5
    with pytest.raises(InvalidJob, match=r"checkpoint\.resumeFrom: .* can't be used: manifest\.json is missing"):
        worker(beside, job("b", {"resumeFrom": f"{folder}/step-0000000009.4294967297"})).load()


def spoil(place: Place, name: str) -> None:
    path = place.root / name / "tensors-0.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def test_where_none_is_good_training_does_not_begin_anew(place: Place) -> None:
    first = worker(place, job("a"))
    for step in (1, 2):
        first.save(step)
    for one in place.storage.saved():
        spoil(place, one.name)
    with pytest.raises(InvalidJob, match=r"no checkpoint is as it was written .*: bring one back from a backup"):
        worker(place, job("a"), 2).load()
    assert steps(place) == [2, 1]


def test_bad_ones_do_not_push_out_a_good_one(place: Place) -> None:
    first = Worker(place, keep=3)
    for step in (1, 2, 3):
        first.save(step)
    for one in place.storage.saved()[:2]:
        spoil(place, one.name)
    second = Worker(place, 2, keep=3)
    assert second.load() == 1
    for step in (2, 3):
        second.save(step)
    assert 1 in steps(place), "there are three newer ones, of which two are good"
    second.save(4)
    assert steps(place) == [4, 3, 2], "now it may go, and with it the bad ones"


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EACCES, errno.EMFILE, errno.ETIMEDOUT])
def test_what_can_not_be_read_now_is_waited_for(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    place = Place(Directory(tmp_path), tmp_path)
    Worker(place).save(9)
    monkeypatch.setattr(manager, "RETRY_SECONDS", 0.001)
    real, failed = Directory.open, []

    def refuse(self: Directory, path: str, cached: bool = True) -> io.BufferedReader:
        if len(failed) < 3:
            failed.append(path)
            raise OSError(number, os.strerror(number), path)
        return real(self, path, cached)

    monkeypatch.setattr(Directory, "open", refuse)
    second, told = Worker(place, 2), []
    found = second.checkpoints.wait_for(
        lambda: second.checkpoints.load(second.state), lambda: told.append(second.checkpoints.error)
    )
    assert found
    assert second.state.counters.step == 9
    assert len(told) == 3
    assert "training waits for its checkpoints since " in told[0]
    assert os.strerror(number) in told[0]
    assert second.notes[0] == told[0]
    assert second.checkpoints.error == ""


def test_who_never_gets_the_folder_says_who_holds_it_and_ends(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    first = worker(place, job("a"))
    first.save(1)
    claim(place.storage, "b", 1)
    first.save_aside(2)
    assert "coordinator 1 of the job with uid b holds the folder" in first.checkpoints.error
    first.save_aside(3)
    monkeypatch.setattr(manager, "HELD_SECONDS", 0.0)
    with pytest.raises(InvalidJob, match=r"nothing could be saved in .* uid b holds the folder: end one of the two"):
        first.save_aside(4)
    wait()
    with pytest.raises(Held):
        first.checkpoints.export(first.state)
    assert steps(place) == [1]


def test_a_key_finds_what_another_one_forged(place: Place) -> None:
    key = b"0123456789abcdef"
    first = worker(place, job("a"), key=key)
    first.save(1)
    assert worker(place, job("a"), key=key).load() == 1
    with pytest.raises(InvalidJob, match=r"manifest\.json is not sealed with this job's key"):
        worker(place, job("a"), key=b"another key of 23 bytes").load()
    (name,) = [one.name for one in place.storage.saved()]
    path = place.root / name / file_format.MANIFEST
    told = json.loads(path.read_bytes())
    told |= {"step": 2, "xxh3_128": file_format.UNSIGNED}
    text = json.dumps(told, indent=1)
    path.write_text(text.replace(file_format.UNSIGNED, xxhash.xxh3_128(text.encode()).hexdigest(), 1))
    assert file_format.manifest_of(place.storage, name)["step"] == 2, "without the key it is as good as any"
    with pytest.raises(InvalidJob, match=r"not sealed"):
        worker(place, job("a"), key=key).load()


def test_a_checkpoint_without_a_seal_is_not_used_where_a_key_is_given(place: Place) -> None:
    worker(place, job("a")).save(1)
    with pytest.raises(InvalidJob, match=r"not sealed"):
        worker(place, job("a"), key=b"0123456789abcdef").load()


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("/nowhere/is/code/run",)


def test_a_pickle_in_any_file_is_never_unpickled(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, never)
    monkeypatch.setattr(torch, "load", never)
    Worker(place).save(1)
    (name,) = [one.name for one in place.storage.saved()]
    folder = place.root / name
    told = json.loads((folder / file_format.MANIFEST).read_bytes())
    evil = pickle.dumps(Evil())
    for file in [*told["files"], ".metadata"]:
        before = (folder / file).read_bytes() if (folder / file).exists() else None
        (folder / file).write_bytes(evil)
        forged = told | {"xxh3_128": file_format.UNSIGNED}
        forged["files"] = told["files"] | {file: {"bytes": len(evil), "xxh3_128": xxhash.xxh3_128(evil).hexdigest()}}
        text = json.dumps(forged, indent=1)
        (folder / file_format.MANIFEST).write_text(
            text.replace(file_format.UNSIGNED, xxhash.xxh3_128(text.encode()).hexdigest(), 1)
        )
        if before is None:
            assert Worker(place).load() == 1
        else:
            with pytest.raises(InvalidJob, match="no checkpoint is as it was written"):
                Worker(place).load()
            (folder / file).write_bytes(before)


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"../../default.other/secret": {"bytes": 1, "xxh3_128": "0" * 32}}},
        {"chunks": {"model.weight": [["../x", 0, [0, 0], [2, 3]]]}},
        {"chunks": {"model.weight": [["tensors-0.safetensors", -1, [0, 0], [2, 3]]]}},
        {"chunks": {"model.weight": [["tensors-0.safetensors", 0, [0, 0], [2**60, 2**60]]]}},
        {"chunks": {"model.weight": [["tensors-0.safetensors", 0, [0, 0, 0], [2, 3, 1]]]}},
        {"chunks": {"model.weight": [["tensors-0.safetensors", 0, [0, 0], [10**6, 10**6]]]}},
        {"chunks": {"model.weight": "x"}},
        {"chunks": {}},
        {"chunks": None},
        {"files": 3},
        {"tensors": []},
    ],
)
def test_a_forged_manifest_is_one_sentence(place: Place, change: dict[str, Any]) -> None:
    Worker(place).save(1)
    (name,) = [one.name for one in place.storage.saved()]
    path = place.root / name / file_format.MANIFEST
    told = json.loads(path.read_bytes()) | {"xxh3_128": file_format.UNSIGNED}
    for part, value in change.items():
        told[part] = told[part] | value if isinstance(value, dict) and value else value
    text = json.dumps(told, indent=1)
    path.write_text(text.replace(file_format.UNSIGNED, xxhash.xxh3_128(text.encode()).hexdigest(), 1))
    with pytest.raises(file_format.Corrupt):  # noqa: PT012 -- whichever of the two meets it
        file_format.verify(place.storage, name)
        file_format.read(place.storage, name, lambda _: Worker(place).state.tensors())


def test_another_releases_format_is_named(place: Place) -> None:
    Worker(place).save(1)
    (name,) = [one.name for one in place.storage.saved()]
    path = place.root / name / file_format.MANIFEST
    told = {"format": 1, "xxh3_128": file_format.UNSIGNED, "step": 1, "files": {}, "tensors": {}}
    text = json.dumps(told)
    path.write_text(text.replace(file_format.UNSIGNED, xxhash.xxh3_128(text.encode()).hexdigest(), 1))
    with pytest.raises(InvalidJob, match="of format 1, and this release reads format 2 only"):
        Worker(place).load()


def test_a_pipe_in_a_checkpoints_place_keeps_nobody_waiting(tmp_path: Any) -> None:
    place = Place(Directory(tmp_path), tmp_path)
    Worker(place).save(1)
    (name,) = [one.name for one in place.storage.saved()]
    (tmp_path / name / "tensors-0.safetensors").unlink()
    os.mkfifo(tmp_path / name / "tensors-0.safetensors")
    with pytest.raises(InvalidJob, match="no checkpoint is as it was written"):
        Worker(place).load()
