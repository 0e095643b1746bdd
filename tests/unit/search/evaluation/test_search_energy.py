"""Joules of a trial, on counters that these tests move."""

import functools
import threading
from pathlib import Path

import pytest
import torch
from adaptrain.errors import InvalidJob
from adaptrain.search.evaluation import training_trial
from adaptrain.search.evaluation.energy import Counters, Energy, Integral, counters, measure
from adaptrain_api.search.job import ArchitectureSearchSpec

from tests.unit.api.test_api_rules import PHASE

CPU = torch.device("cpu")
RANGE = 262_143_328_850


def zone(folder: Path, name: str, microjoules: int = 0) -> Path:
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{RANGE}\n")
    return folder


def move(folder: Path, joules: float) -> None:
    """Let a counter count, beyond its range from the start."""
    before = int((folder / "energy_uj").read_text())
    (folder / "energy_uj").write_text(f"{(before + int(joules * 1e6)) % (RANGE + 1)}\n")


def machine(devices: Path) -> dict[str, Path]:
    """Two packages, one with a counter of its own for memory, as Linux nests them."""
    root = devices / "intel-rapl"
    return {
        "package": zone(root / "intel-rapl:0", "package-0"),
        "core": zone(root / "intel-rapl:0/intel-rapl:0:0", "core"),
        "dram": zone(root / "intel-rapl:0/intel-rapl:0:1", "dram"),
        "other": zone(root / "intel-rapl:1", "package-1"),
        "psys": zone(root / "intel-rapl:2", "psys"),
    }


def classes(devices: Path, folder: Path) -> Path:
    """The same as /sys/class shows it: a flat folder of links."""
    folder.mkdir()
    for found in devices.rglob("intel-rapl:*"):
        (folder / found.name).symlink_to(found)
    return folder


def test_what_is_counted_is_counted_once(tmp_path: Path) -> None:
    """However the counters are shown; neither a package's parts nor the platform are added to the packages."""
    zones = machine(tmp_path / "devices")
    flat = classes(tmp_path / "devices", tmp_path / "class")
    for root in (tmp_path / "devices", flat):
        assert [one.name for one in counters(root)] == ["intel-rapl:0", "intel-rapl:0:1", "intel-rapl:1"]
        with measure(CPU, (root,)) as energy:
            for joules, name in enumerate(zones, start=1):
                move(zones[name], joules)
        assert energy.joules == pytest.approx(1 + 3 + 4)
    with measure(CPU, (tmp_path / "devices", flat)) as energy:
        move(zones["package"], 5)
    assert energy.joules == pytest.approx(5), "the same counters at two places"


def test_a_counter_that_begins_again_goes_on(tmp_path: Path) -> None:
    one = zone(tmp_path / "intel-rapl:0", "package-0", RANGE - 1_000_000)
    meter = Counters([one])
    meter()
    move(one, 3.5)
    assert int((one / "energy_uj").read_text()) < 3_500_000
    assert meter() == pytest.approx(3.5)
    move(one, 200_000)
    meter()
    move(one, 200_000)
    assert meter() == pytest.approx(400_003.5), "more than its range, looked at on the way"


def test_power_is_integrated() -> None:
    watts, seconds = [100.0, 100.0, 300.0, 300.0], [0.0, 1.0, 1.5, 3.5]
    meter = Integral(iter(watts).__next__, iter(seconds).__next__)
    found = [meter() for _ in watts]
    assert found == pytest.approx([0, 100, 200, 800])


def test_the_meter_is_looked_at_meanwhile_and_its_failure_is_told() -> None:
    looked = threading.Event()
    calls = 0

    def meter() -> float:
        nonlocal calls
        calls += 1
        if calls == 3:
            looked.set()
        if calls > 3:
            raise OSError("the driver is gone")
        return float(calls)

    with pytest.raises(OSError, match="the driver is gone"), Energy(meter, 0.001):
        assert looked.wait(20)


SPEC = ArchitectureSearchSpec.model_validate(
    {
        "space": {"parameters": [{"name": "model.args.width", "values": [8, 16]}]},
        "objectives": [{"metric": "val/accuracy", "goal": "maximize"}, {"metric": "energy", "goal": "minimize"}],
        "budget": {"trials": 2},
        "trial": {"model": {"name": "mlp"}, "data": {"name": "digits"}, "phases": [PHASE | {"stop": {"epochs": 2}}]},
    }
)
GIVEN = {"trial": 0, "parameters": {"model.args.width": 8}}


def test_a_trial_reports_its_own_joules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = zone(tmp_path / "intel-rapl:0", "package-0", 7_000_000)
    monkeypatch.setattr(training_trial, "measure", functools.partial(measure, powercap=(tmp_path,)))
    bench = training_trial.Training(SPEC, None)
    for _ in range(2):
        assert bench.run(GIVEN, lambda step, metrics: move(one, 2.5))["energy"] == pytest.approx(5.0)


def test_where_nothing_can_be_measured_a_trial_says_so_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_trial, "measure", functools.partial(measure, powercap=(tmp_path,)))

    def report(step: int, metrics: dict[str, float]) -> None:
        raise AssertionError("it trains for nothing")

    with pytest.raises(InvalidJob, match=r"objectives, constraints: energy can't be measured here: .*RAPL.*another"):
        training_trial.Training(SPEC, None).run(GIVEN, report)
    (zone(tmp_path / "intel-rapl:0", "package-0") / "energy_uj").unlink()
    with pytest.raises(InvalidJob, match=r"a counter can't be read .*chmod a\+r"):
        training_trial.Training(SPEC, None).run(GIVEN, report)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here a GPU may tell its power")
def test_a_gpu_that_tells_no_power_is_said() -> None:
    with pytest.raises(InvalidJob, match=r"NVML doesn't tell the power of cuda:0 .*nvidia-ml-py"):
        measure(torch.device("cuda", 0))
