"""The training's history: each step once, in the checkpoint and beside it, whoever joins, resumes or forges."""

import json
import math
from typing import Any

import pytest
import xxhash
from adaptrain.elastic.checkpoint import file_format
from adaptrain.elastic.state import history
from adaptrain.elastic.state.history import FILE, History
from adaptrain.elastic.state.replicated import HISTORY
from adaptrain.elastic.storage.lineage import Superseded

from tests.unit.conftest import Place
from tests.unit.elastic.checkpoint.test_checkpoint import Worker, wait
from tests.unit.elastic.checkpoint.test_resume import job, worker
from tests.unit.elastic.state.test_heal import state


def train(one: Worker, until: int, value: float = 0.5) -> Worker:
    """Apply steps until there are so many, with an evaluation after each fifth."""
    one.state.history.recording = True
    c = one.state.counters
    while c.step < until:
        c.step += 1
        one.state.history.step(c.step, 0, value + c.step, 0.1, 64, 0)
        if c.step % 5 == 0:
            one.state.history.evaluated(c.step, 0, {"val/loss": value})
    return one


def save(one: Worker) -> None:
    one.save(one.state.counters.step)


def rows(place: Place) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place.root / FILE).read_text().splitlines()]


def steps(place: Place) -> list[int]:
    return [row["step"] for row in rows(place) if "batch_size" in row]


def newest(place: Place) -> str:
    return place.storage.saved()[0].name


def test_a_checkpoint_tells_each_of_its_steps_once(place: Place) -> None:
    one = Worker(place)
    for until in (7, 10, 12):
        save(train(one, until))
        assert steps(place) == list(range(1, until + 1))
        assert (place.root / FILE).read_text() == file_format.rows_of(place.storage, newest(place))
    assert [row["loss"] for row in rows(place) if "loss" in row] == [0.5 + step for step in range(1, 13)]
    assert [row["step"] for row in rows(place) if "val/loss" in row] == [5, 10]
    assert rows(place)[0] == {
        "step": 1, "data_epoch": 0, "loss": 1.5, "learning_rate": 0.1, "batch_size": 64, "skipped_steps": 0,
    }  # fmt: skip
    counters = json.loads((place.root / newest(place) / "counters.json").read_text())
    assert HISTORY not in counters["more"]


def test_who_resumes_goes_on_and_what_was_not_saved_is_superseded(place: Place) -> None:
    one = train(Worker(place), 10)
    save(one)
    train(one, 15)  # lost with the worker
    other = Worker(place, lineage=2)
    assert other.load() == 10
    save(train(other, 20, value=100))
    assert steps(place) == list(range(1, 21))
    assert [row["loss"] for row in rows(place) if "loss" in row][9:11] == [10.5, 111]


def test_an_older_checkpoint_that_is_gone_on_from_takes_later_rows_back(place: Place) -> None:
    one = train(Worker(place), 4)
    save(one)
    save(train(one, 9))
    (place.root / newest(place) / "manifest.json").write_text("spoiled")
    other = Worker(place, lineage=2)
    assert other.load() == 4
    other.checkpoints.claim()
    wait()
    assert steps(place) == [1, 2, 3, 4], "the file is that of the newest good checkpoint"
    save(train(other, 6))
    assert steps(place) == list(range(1, 7))


def test_a_writer_that_was_lost_before_it_published_loses_nothing(place: Place) -> None:
    one = train(Worker(place), 4)
    save(one)
    before = (place.root / FILE).read_bytes()
    save(train(one, 9))
    (place.root / FILE).write_bytes(before)
    other = Worker(place, lineage=2)
    assert other.load() == 9
    other.checkpoints.claim()
    wait()
    assert steps(place) == list(range(1, 10))


def test_who_joined_commits_all_of_it(place: Place, pair: Any) -> None:
    first, joiner = train(Worker(place), 8), Worker(place)
    first.state.counters.version = 8
    for done in pair(first.state.heal, lambda group, _: joiner.state.heal(group)):
        done.result(30)
    joiner.state.counters.version = 0
    save(train(joiner, 11))
    assert steps(place) == list(range(1, 12))


def test_who_is_a_little_behind_gets_only_what_it_lacks(place: Place, pair: Any) -> None:
    """And the last step that it has, which the others may have taken again."""
    first, behind = train(Worker(place), 8), train(Worker(place), 6, value=0.6)
    first.state.counters.version, behind.state.counters.version = 9, 7
    assert [json.loads(row)["step"] for row in first.state.history.text(6).splitlines()] == [6, 7, 8]
    for done in pair(first.state.heal, lambda group, _: behind.state.heal(group)):
        done.result(30)
    save(train(behind, 11))
    assert steps(place) == list(range(1, 12))
    assert [row["loss"] for row in rows(place) if "loss" in row][4:8] == [5.6, 6.5, 7.5, 8.5]


def test_a_fenced_writer_leaves_the_file_alone(place: Place) -> None:
    old, new = train(Worker(place), 3), Worker(place, lineage=2)
    save(old)
    assert new.load() == 3
    save(train(new, 5, value=7))
    with pytest.raises(Superseded):
        save(train(old, 9))
    old.checkpoints._publish_rows(old.state.history.text(), old.control.epoch)
    assert steps(place) == [1, 2, 3, 4, 5]


def test_a_checkpoint_of_an_older_release_begins_a_history_after_it(place: Place) -> None:
    one = Worker(place)
    one.save(6)
    assert not (place.root / FILE).exists()
    other = Worker(place, lineage=2)
    assert other.load() == 6
    save(train(other, 8))
    assert steps(place) == [7, 8]


def test_a_named_checkpoint_brings_its_history_along(place: Place) -> None:
    one = train(worker(place, job("a")), 4)
    save(one)
    name = newest(place)
    save(train(one, 9))
    named = worker(place, job("b", {"resumeFrom": name}, seed=7), 1)
    assert named.load() == 4
    save(train(named, 6))
    assert steps(place) == list(range(1, 7))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"step": 1, "batch_size": 1}\n{"step": 1, "batch_size": 1}\n', "line 2 is of step 1, behind step 1"),
        ('{"step": 2, "batch_size": 1}\n{"step": 1, "batch_size": 1}\n', "line 2 is of step 1, behind step 2"),
        ('{"step": 99, "batch_size": 1}\n', "line 1 is of step 99"),
        ('{"step": 1, "batch_size": 1}\n{"step": 2, "ba', "its last line has no end"),
        ('["step"]\n', "line 1 is no row"),
        ('{"step": -1, "batch_size": 1}\n', "line 1 is no row"),
        ("[" * 100_000 + "\n", "can't be read"),
        ("\u00e9\n", "can't be read"),
        ('{"step": 1, "name": "' + "x" * 20_000 + '"}\n', "line 1 is no row"),
    ],
)
def test_a_forged_history_begins_anew_and_training_goes_on(place: Place, text: str, says: str) -> None:
    save(train(Worker(place), 4))
    forge(place, text.encode())
    other = Worker(place, lineage=2)
    assert other.load() == 4
    assert says in other.notes[0]
    save(train(other, 6))
    assert steps(place) == [5, 6]


def test_a_huge_history_is_not_read(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    save(train(Worker(place), 4))
    monkeypatch.setattr(file_format, "ROWS_LIMIT", 100)
    other = Worker(place, lineage=2)
    assert other.load() == 4
    assert "at most 100 are read" in other.notes[0]


def test_a_history_that_storage_spoiled_is_found(place: Place) -> None:
    save(train(Worker(place), 4))
    path = place.root / newest(place) / FILE
    path.write_text(path.read_text().replace("0.1", "0.2"))
    with pytest.raises(file_format.Corrupt, match=r"metrics.jsonl has digest"):
        file_format.rows_of(place.storage, newest(place))
    with pytest.raises(file_format.Corrupt, match=r"metrics.jsonl has digest"):
        file_format.verify(place.storage, newest(place))


def test_with_a_key_rows_that_another_one_forged_are_found(place: Place) -> None:
    one = train(worker(place, job(), key=b"secret"), 4)
    save(one)
    assert file_format.rows_of(place.storage, newest(place), b"secret") == one.state.history.text()
    forge(place, b"")
    with pytest.raises(file_format.Corrupt, match="not sealed with this job's key"):
        file_format.rows_of(place.storage, newest(place), b"secret")


def forge(place: Place, text: bytes) -> None:
    """Put another history into the newest checkpoint, with digests that are right."""
    folder = place.root / newest(place)
    (folder / FILE).write_bytes(text)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][FILE] = {"bytes": len(text), "xxh3_128": xxhash.xxh3_128(text).hexdigest()}
    manifest["xxh3_128"] = file_format.UNSIGNED
    unsigned = json.dumps(manifest, indent=1)
    digest = xxhash.xxh3_128(unsigned.encode()).hexdigest()
    (folder / "manifest.json").write_text(unsigned.replace(file_format.UNSIGNED, digest, 1))


def test_rows_that_storage_refuses_cost_no_checkpoint(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    one = train(Worker(place), 3)

    def refuse(*_: Any) -> Any:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(place.storage, "replace", refuse)
        save(one)
    assert "metrics.jsonl could not be written: OSError: no space left" in one.checkpoints.error
    assert one.checkpoints.newest_step == 3
    save(train(one, 4))
    assert one.checkpoints.error == ""
    assert steps(place) == [1, 2, 3, 4]


def test_one_evaluation_a_step_and_only_numbers_that_json_has() -> None:
    one = History()
    one.evaluated(1, 0, {"val/loss": 1.0})
    assert one.text() == "", "nothing is recorded where there are no checkpoints"
    one.recording = True
    one.step(1, 0, 0.5, 0.1, 64, 0)
    one.evaluated(1, 0, {"val/loss": 1.0, "loss": 2.0})
    one.evaluated(1, 0, {"val/loss": math.nan, "test/loss": 3.0})
    one.evaluated(1, 0, {})
    assert [json.loads(line) for line in one.text().splitlines()][1:] == [
        {"step": 1, "data_epoch": 0, "metrics/loss": 2.0, "test/loss": 3.0, "val/loss": None}
    ]
    history.check(one.text(), 1)


def test_it_is_bounded_and_keeps_evaluations_and_the_newer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MOST_BYTES", 20_000)
    one = History()
    one.recording = True
    for step in range(1, 2001):
        one.step(step, 0, 0.5, 0.1, 64, 0)
        if step % 100 == 0:
            one.evaluated(step, 1, {"val/loss": 1.0})
    assert len(one.text()) <= 20_000
    history.check(one.text(), 2000)
    found = [json.loads(line) for line in one.text().splitlines()]
    assert [row["step"] for row in found if "val/loss" in row] == list(range(100, 2001, 100))
    assert [row["step"] for row in found if "loss" in row][-50:] == list(range(1951, 2001))
    for step in range(2001, 4001):
        one.evaluated(step, 1, {"val/loss": 1.0})
    assert len(one.text()) <= 20_000


def test_what_a_peer_of_an_older_release_sends_leaves_the_present_rows() -> None:
    ahead, behind = state(1.0, 5), state(2.0, 4)
    behind.history.recording = True
    for step in (1, 2, 3):
        behind.history.step(step, 0, 0.5, 0.1, 64, 0)
    sent = ahead.capture()
    sent["counters"]["step"] = 2
    del sent["counters"]["more"][HISTORY]
    behind.restore(sent)
    assert [json.loads(line)["step"] for line in behind.history.text().splitlines()] == [1, 2]
    ahead.restore(behind.capture())
    assert ahead.history.text() == behind.history.text()
