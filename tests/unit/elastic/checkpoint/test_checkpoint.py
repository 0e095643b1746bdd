"""What is kept, what is not taken for a checkpoint, and what is said when storage refuses: in a folder and a bucket."""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from adaptrain.elastic.checkpoint import manager
from adaptrain.elastic.checkpoint.manager import Checkpoints, Policy
from adaptrain.elastic.membership.client import CoordinatorClient
from adaptrain.elastic.state.replicated import ReplicatedState
from adaptrain.elastic.storage.directory import Unavailable
from adaptrain.elastic.storage.lineage import Superseded
from adaptrain.elastic.storage.object_store import ObjectStore, explain
from obstore.exceptions import GenericError

from tests.support.s3 import KEYS, S3Server
from tests.unit.conftest import Place


class Worker:
    """A worker of a lineage, with a model of its own and its job's checkpoints."""

    def __init__(self, place: Place, lineage: int = 1, **policy: Any) -> None:
        model = torch.nn.Linear(3, 2)
        self.state = ReplicatedState(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
        self.notes: list[str] = []
        self.control = SimpleNamespace(
            epoch=(lineage << 32) + 1, may_commit=True, connected=True, note=self.notes.append,
            doing=lambda *_: nullcontext(),
        )  # fmt: skip
        rules = Policy(**{"every_seconds": 0, **policy})
        self.checkpoints = Checkpoints(place.storage, rules, cast(CoordinatorClient, self.control))

    def save(self, step: int, best_step: int = 0) -> None:
        self.state.counters.step, self.state.counters.best_step = step, best_step
        with torch.no_grad():
            next(self.state.model.parameters()).fill_(step)
        self.checkpoints.save(self.state)

    def save_aside(self, step: int) -> None:
        self.state.counters.step = step
        self.checkpoints.maybe_save(self.state)
        wait()

    def load(self) -> int | None:
        """The step of the state that was restored."""
        if not self.checkpoints.load(self.state):
            return None
        step = self.state.counters.step
        assert bool((next(self.state.model.parameters()) == step).all())
        return step


def wait() -> None:
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join()


def steps(place: Place) -> list[int]:
    return [saved.step for saved in place.storage.saved()]


def test_the_newest_are_kept(place: Place) -> None:
    worker = Worker(place, keep=2)
    assert worker.load() is None
    for step in (1, 2, 3, 4):
        worker.save(step)
    assert steps(place) == [4, 3]
    assert Worker(place).load() == 4
    assert len(list(place.root.iterdir())) == 3, "nothing but two checkpoints and the lineage's note is left"


def test_the_first_one_with_the_best_metric_is_kept_too(place: Place) -> None:
    worker = Worker(place, keep=2, keep_best=True)
    for step, best in ((1, 0), (2, 2), (3, 2), (4, 2), (5, 2)):
        worker.save(step, best)
    assert steps(place) == [5, 4, 2]
    worker.save(6, 6)
    assert steps(place) == [6, 5]


def test_a_better_metric_makes_a_checkpoint_due(place: Place) -> None:
    worker = Worker(place, keep_best=True, every_seconds=1000)
    worker.save_aside(3)
    assert steps(place) == []
    worker.state.counters.best_step = 3
    worker.save_aside(4)
    worker.save_aside(5)
    assert steps(place) == [4]


def test_the_newer_lineage_goes_first(place: Place) -> None:
    Worker(place, lineage=1).save(9)
    Worker(place, lineage=2).save(5)
    assert Worker(place, lineage=3).load() == 5


def test_an_older_lineage_leaves_nothing_behind(place: Place) -> None:
    old, new = Worker(place, lineage=1), Worker(place, lineage=2)
    old.save(1)
    new.checkpoints.claim()
    wait()
    with pytest.raises(Superseded):
        old.save(2)
    with pytest.raises(Superseded):
        old.checkpoints.export(old.state)
    assert steps(place) == [1]


def test_who_loses_its_coordinator_while_saving_commits_nothing(place: Place) -> None:
    worker = Worker(place)
    worker.save(1)
    worker.control.connected = False
    with pytest.raises(Superseded):
        worker.save(2)
    worker.control.connected = True
    assert len(list(place.root.iterdir())) == 2
    assert worker.load() == 1


def test_what_a_killed_worker_left_is_no_checkpoint_and_is_swept_away(place: Place) -> None:
    worker = Worker(place)
    worker.save(1)
    left = place.storage.begin(f"step-{2:010d}.{worker.control.epoch}")
    with place.storage.create(f"{left}/tensors-0.safetensors") as stream:
        stream.write(b"half of it")
    assert Worker(place, lineage=2).load() == 1
    worker.save(3)
    assert (place.root / left).exists(), "another member of the epoch may still be writing it"
    worker.control.epoch += 1
    worker.save(4)
    assert not (place.root / left).exists()


def test_a_file_that_is_swept_away_while_the_others_are_written_is_missed(bucket: Place) -> None:
    class Swept(ObjectStore):
        def commit(self, folder: str, name: str, manifest: bytes, check: Callable[[], None]) -> str:
            (bucket.root / folder / "counters.json").unlink()
            return super().commit(folder, name, manifest, check)

    with pytest.raises(OSError, match=r"counters.json has None bytes in the bucket, not \d+"):
        Worker(Place(Swept(str(bucket.storage)), bucket.root)).save(1)
    assert Worker(bucket).load() is None


def test_what_storage_spoils_at_once_is_found_and_does_not_push_out_what_is_good(place: Place) -> None:
    worker = Worker(place, keep=1, verify=True)
    worker.save(1)

    def spoil(*arguments: Any) -> str:
        folder = type(place.storage).commit(place.storage, *arguments)
        path = place.root / folder / "tensors-0.safetensors"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        return folder

    place.storage.commit = spoil  # type: ignore[method-assign]
    worker.save_aside(2)
    assert "tensors-0.safetensors has digest" in worker.checkpoints.error
    assert "is removed" in worker.notes[0]
    assert worker.checkpoints.newest_step == 1
    assert steps(place) == [1]
    del place.storage.commit
    worker.save_aside(3)
    assert worker.checkpoints.error == ""
    assert steps(place) == [3]


def test_the_model_is_replaced_as_a_whole(place: Place) -> None:
    def refuse() -> None:
        raise Superseded

    for text, check in (("one", lambda: None), ("another", refuse)):
        try:
            with place.storage.replace("model", check) as path:
                path.write_text(text)
        except Superseded:
            pass
    assert [(p.name, p.read_text()) for p in place.root.iterdir()] == [("model", "one")]


def test_a_large_object_goes_in_parts_and_comes_back(bucket: Place) -> None:
    data = torch.randint(256, (50_000_001,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    with bucket.storage.create("folder/large") as stream:
        for part in (data[:7], data[7:40_000_000], data[40_000_000:]):
            stream.write(part)
    with bucket.storage.open("folder/large") as stream:
        assert stream.read() == data.tobytes()
    bucket.storage.remove("folder")
    with pytest.raises(FileNotFoundError):
        bucket.storage.open("folder/large")


@pytest.mark.parametrize(
    ("uri", "environment", "says"),
    [
        ("s3://nowhere/x", {}, 's3://nowhere/x: there is no bucket "nowhere": create it, or correct checkpoint.uri'),
        (
            "s3://{bucket}/x",
            {"AWS_SECRET_ACCESS_KEY": "wrong"},
            r"access is denied \(SignatureDoesNotMatch\): check the keys in checkpoint.secretRef",
        ),
        (
            "s3://{bucket}/x",
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"},
            r"127.0.0.1:1 can't be reached \(Connection refused\): check the endpoint",
        ),
        (
            "s3://{bucket}/x",
            {"AWS_ENDPOINT_URL": "http://nowhere.invalid"},
            r"nowhere.invalid can't be reached \(failed to lookup .*\): check the endpoint",
        ),
    ],
)
def test_a_bucket_that_can_not_be_used_says_why_and_what_to_do(
    bucket: Place, monkeypatch: pytest.MonkeyPatch, uri: str, environment: dict[str, str], says: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    storage = ObjectStore(uri.format(bucket=bucket.root.parts[-3]))

    def write() -> None:
        with storage.create("a/b") as stream:
            stream.write(b"x" * (20 << 20))

    for attempt in (storage.saved, write):
        with pytest.raises(Unavailable, match=says) as caught:
            attempt()
        assert "AWS4-HMAC" not in str(caught.value)
        assert KEYS["AWS_ACCESS_KEY_ID"] not in str(caught.value)
        assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 2ms - HTTP error: x",
            "s3://b: there are no credentials: name a Secret that holds them in checkpoint.secretRef",
        ),
        (
            "Generic S3 error: Error performing GET https://s3.eu-west-1.amazonaws.com/b in 90ms - Received redirect"
            " without LOCATION, this normally indicates an incorrectly configured region",
            "s3://b: the bucket is in another region: set AWS_REGION in checkpoint.secretRef",
        ),
        (
            "Generic S3 error: Error performing PUT https://h/b in 90ms, after 5 retries - Server returned non-2xx"
            " status code: 503 Service Unavailable: <Error><Code>SlowDown</Code><Message>Slower.</Message></Error>",
            "s3://b: the store refused: 503 Service Unavailable SlowDown Slower.",
        ),
        (
            "Generic S3 error: Error performing GET https://h:9000/b in 9ms - HTTP error: error sending\n\nDebug"
            " source:\nGeneric { store: S3, source: InvalidCertificate(UnknownIssuer) }",
            "s3://b: the certificate of h:9000 is not trusted: mount your authority's certificate",
        ),
    ],
)
def test_what_a_store_says_is_told_in_words(text: str, says: str) -> None:
    told = explain("s3://b", GenericError(text))
    assert told is not None
    assert told.startswith(says)


def test_a_store_that_is_away_for_a_while_costs_a_checkpoint_and_no_more(bucket: Place, s3: S3Server) -> None:
    worker = Worker(bucket)
    worker.save_aside(1)
    s3.stop()
    try:
        worker.save_aside(2)
        assert "a checkpoint could not be saved: s3://" in worker.checkpoints.error
        assert "can't be reached" in worker.checkpoints.error
        assert worker.checkpoints.newest_step == 1
        with pytest.raises(Unavailable, match="can't be reached"):
            Worker(bucket).load()
    finally:
        s3.start()
    worker.save_aside(3)
    assert (worker.checkpoints.error, worker.checkpoints.newest_step) == ("", 3)
    assert steps(bucket) == [3, 1]


def test_storage_that_does_not_answer_is_told_of_and_waited_for_with_a_bound(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(place)
    worker.save(1)
    answers, begin = threading.Event(), place.storage.begin

    def hang(name: str) -> str:
        answers.wait(30)
        return begin(name)

    monkeypatch.setattr(place.storage, "begin", hang)
    monkeypatch.setattr(manager, "SLOW_SECONDS", 0.0)
    worker.state.counters.step = 2
    with pytest.raises(Unavailable, match="has not answered for"):
        worker.checkpoints.save(worker.state, 0.05)
    worker.checkpoints.maybe_save(worker.state)
    assert "the newest checkpoint is not saved yet" in worker.checkpoints.error
    with pytest.raises(Unavailable, match="has not answered for"):
        worker.checkpoints.save(worker.state, 0.05)
    answers.set()
    worker.checkpoints.save(worker.state, 30)
    assert steps(place)[0] == 2
    assert worker.checkpoints.error == ""
