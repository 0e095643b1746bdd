"""Both kinds of storage for checkpoints, and a job that runs."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from adaptrain.elastic.objects import Bucket
from adaptrain.elastic.storage import Directory, Storage

from tests.s3 import S3Server
from tests.unit.operator_world import World


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
    return Place(Bucket(f"s3://{name}/some/prefix"), s3.bucket(name) / "some" / "prefix")


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
