"""Both kinds of storage for checkpoints, and a job that runs."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from adaptrain.elastic.collectives.process_group import ElasticProcessGroup
from adaptrain.elastic.storage.directory import Directory, Storage
from adaptrain.elastic.storage.object_store import ObjectStore

from tests.support.operator_world import World
from tests.support.s3 import S3Server
from tests.unit.elastic.collectives.test_group import control, meet, rendezvous


class Place(NamedTuple):
    """A storage, and where its files really are."""

    storage: Storage
    root: Path


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3") / "buckets") as server:
        yield server


@pytest.fixture
def bucket(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    name = tmp_path.name.replace("_", "-").lower()[-40:].strip("-")
    return Place(ObjectStore(f"s3://{name}/some/prefix"), s3.bucket(name) / "some" / "prefix")


@pytest.fixture(params=["directory", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "bucket":
        found: Place = request.getfixturevalue("bucket")
        return found
    return Place(Directory(tmp_path / "checkpoints"), tmp_path / "checkpoints")


@pytest.fixture
def world() -> World:
    """A job that runs with two workers."""
    made = World()
    made.settle()
    assert made.status.phase == "Running"
    assert made.active() == ["job-worker-0", "job-worker-1"]
    return made


@pytest.fixture
def pair() -> Iterator[
    Callable[[Callable[[ElasticProcessGroup], Any], Callable[[ElasticProcessGroup, Any], Any]], list[Future[Any]]]
]:
    """Runs one function on each of two members; the second one's can be told to leave."""
    store = rendezvous()
    with ThreadPoolExecutor(2) as pool:

        def run(
            first: Callable[[ElasticProcessGroup], Any], second: Callable[[ElasticProcessGroup, Any], Any]
        ) -> list[Future[Any]]:
            said = control()
            return [
                pool.submit(lambda: first(meet(control(), 0, store.port))),
                pool.submit(lambda: second(meet(said, 1, store.port), said)),
            ]

        yield run
