"""What a worker leaves behind can be read whatever it has to say: Kubernetes cuts a termination message."""

import dataclasses
import json
from pathlib import Path

import pytest
from adaptrain.elastic.loop import METRICS_SIZE
from adaptrain.process.result import MESSAGE_LIMIT, failed_result, shortened, write_result
from adaptrain.process.settings import WorkerSettings
from adaptrain.rpc.framing import MAX_FRAME
from adaptrain_api.contracts.coordinator_api import Result, foremost

KEPT_BY_KUBELET, MOST_CONTAINERS = 12 * 1024, 8


def metrics(count: int) -> dict[str, float]:
    per_class = {f"val/accuracy/n{1440764 + n:08d}": 0.12345678912345 for n in range(count)}
    found = {"val/accuracy": 0.9, **per_class}
    return {**found, **{f"best/{name}": value for name, value in found.items()}}


@pytest.mark.parametrize("count", [0, 10, 60, 600, 5_000])
@pytest.mark.parametrize("words", ["", "a" * 10_000, "ü" * 10_000, "\x1b" * 10_000, "\udc80" * 3000, "𝄞" * 3000])
def test_a_result_is_bounded_where_it_is_made(count: int, words: str, tmp_path: Path) -> None:
    ended = {"outcome": "left", "step": 5, "epoch": 1, "metrics": metrics(count), "model": "m"}
    result = failed_result(f"{words}the end").model_copy(update=ended)
    log = tmp_path / "termination-log"
    write_result(WorkerSettings(None, "", "", "u", "w", "h", None, termination_log=log), result)
    assert log.stat().st_size <= MESSAGE_LIMIT <= KEPT_BY_KUBELET // MOST_CONTAINERS
    found = Result.model_validate(json.loads(log.read_bytes()))
    assert (found.outcome, found.step, found.epoch, found.model) == ("left", 5, 1, "m")
    assert found.message.endswith("the end")
    assert {"val/accuracy", "best/val/accuracy"} <= found.metrics.keys()


def test_short_results_are_whole() -> None:
    result = Result(outcome="completed", step=5, epoch=1, message="done", metrics={"a": 1.0, "b": 2.0})
    assert Result.model_validate_json(shortened(result)) == result


def test_a_result_that_cannot_be_written_fails_nothing(tmp_path: Path) -> None:
    settings = WorkerSettings(None, "", "", "u", "w", "h", None, termination_log=tmp_path / "none" / "log")
    write_result(settings, failed_result("boom"))
    write_result(dataclasses.replace(settings, termination_log=None), failed_result("boom"))


def test_the_metrics_that_tell_most_come_first() -> None:
    found = {"zz": 1.0, "val/loss": 2.0, "aa": 3.0, "best/val/loss": 4.0, "test/accuracy": 5.0}
    assert list(foremost(found, 1000)) == ["test/accuracy", "val/loss", "best/val/loss", "aa", "zz"]
    assert list(foremost(found, 50)) == ["test/accuracy", "val/loss"]
    assert foremost(found, 5) == {}


def test_a_result_and_a_report_fit_into_one_frame() -> None:
    assert 3 * METRICS_SIZE < MAX_FRAME - 16 * 1024
