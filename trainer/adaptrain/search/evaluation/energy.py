"""What a trial costs in energy, joules: measured where it computes, while it does.

A CPU's is what its package and its memory count themselves (RAPL, as Linux' powercap shows it:
https://docs.kernel.org/power/powercap/powercap.html). The counters are of the whole machine: two evaluators on one node
count each other. A GPU's is its power, integrated over time (NVML, as torch shows it). Not run on real counters by us.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import torch

from adaptrain.errors import InvalidJob

HOST_POWERCAP = Path("/host/powercap")
"""Where a pod sees its node's counters, if it mounts them there: container runtimes hide them in /sys."""
POWERCAP = (HOST_POWERCAP, Path("/sys/class/powercap"))
GPU_SECONDS = 0.2
"""Between two looks at a GPU's power, which it averages over a sixth of a second to a second."""
RAPL_SECONDS = 10.0
"""Between two looks at the counters: they begin again after some minutes at full power, and never twice within this."""
MICRO = 1e-6

Meter = Callable[[], float]
"""Joules since its first call, at each call. It has to be called now and then."""


class Energy:
    """Measures from entering to leaving it, as a context manager. A thread of its own calls the meter now and then.

    Args:
        seconds: between two calls.

    Raises, when it is left:
        OSError, RuntimeError, ValueError: the meter could not be read any more.
    """

    def __init__(self, meter: Meter, seconds: float) -> None:
        self._meter, self._seconds = meter, seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True, name="energy")
        self._problem: Exception | None = None
        self._before = 0.0
        self.joules = 0.0
        """Known once it was left."""

    def __enter__(self) -> "Energy":
        self._before = self._meter()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        if kind is not None:
            return
        if self._problem is not None:
            raise self._problem
        self.joules = self._meter() - self._before

    def _look(self) -> None:
        while not self._over.wait(self._seconds):
            try:
                self._meter()
            except (OSError, RuntimeError, ValueError) as problem:
                self._problem = problem
                return


def measure(device: torch.device, powercap: tuple[Path, ...] = POWERCAP) -> Energy:
    """What measures a trial on a device.

    Raises:
        InvalidJob: here nothing can.
    """
    if device.type == "cuda":
        try:
            torch.cuda.power_draw(device)
        except Exception as problem:  # NVML's own errors are no common kind
            raise InvalidJob(
                f"objectives, constraints: energy can't be measured here: NVML doesn't tell the power of {device}"
                f" ({problem}): install nvidia-ml-py in the image, run on GPUs that tell it, or name another metric"
            ) from problem
        return Energy(Integral(lambda: torch.cuda.power_draw(device) / 1000, time.monotonic), GPU_SECONDS)
    zones: list[Path] = next(filter(None, (list(counters(root)) for root in powercap)), [])
    if not zones:
        raise InvalidJob(
            "objectives, constraints: energy can't be measured here: there is neither a GPU nor a counter in"
            f" {' or '.join(map(str, powercap))}: run on nodes whose CPUs have RAPL, and mount their"
            f" /sys/devices/virtual/powercap at {HOST_POWERCAP} (evaluators.volumes, volumeMounts), or name another"
            " metric"
        )
    meter = Counters(zones)
    try:
        meter()
    except (OSError, ValueError) as problem:
        raise InvalidJob(
            f"objectives, constraints: energy can't be measured here: a counter can't be read ({problem}): let all"
            " users of the node read energy_uj (chmod a+r), or name another metric"
        ) from problem
    return Energy(meter, RAPL_SECONDS)


def counters(root: Path) -> Iterator[Path]:
    """Folders of the counters that add up to a machine's CPUs and memory: of each package, and of memory beside it.

    Left out is what counts the same once more: parts of a package (cores, graphics), and the platform (psys).
    """
    for zone in sorted([*root.glob("intel-rapl:*"), *root.glob("intel-rapl/intel-rapl:*")]):
        if re.fullmatch(r"intel-rapl:[0-9]+", zone.name) and _name(zone).startswith("package"):
            yield zone
            yield from (part for part in sorted(zone.glob("intel-rapl:*:*")) if _name(part) == "dram")


def _name(zone: Path) -> str:
    try:
        return (zone / "name").read_text().strip()
    except OSError:
        return ""


class Counters:
    """A meter that adds up counters of powercap, each of which begins again beyond its range.

    Raises, with each call:
        OSError: one can't be read.
        ValueError: one holds no number.
    """

    def __init__(self, zones: list[Path]) -> None:
        self._last: dict[Path, int | None] = dict.fromkeys(zones)
        self._joules = 0.0

    def __call__(self) -> float:
        for zone, before in self._last.items():
            now = int((zone / "energy_uj").read_text())
            if before is not None:
                grown = now - before
                if grown < 0:
                    grown += int((zone / "max_energy_range_uj").read_text()) + 1
                self._joules += grown * MICRO
            self._last[zone] = now
        return self._joules


class Integral:
    """A meter that integrates power, by trapezoids between two looks.

    Args:
        watts: the power now.
        clock: seconds.
    """

    def __init__(self, watts: Callable[[], float], clock: Callable[[], float]) -> None:
        self._watts, self._clock = watts, clock
        self._last: tuple[float, float] | None = None
        self._joules = 0.0

    def __call__(self) -> float:
        now, watts = self._clock(), self._watts()
        if self._last is not None:
            at, before = self._last
            self._joules += (watts + before) / 2 * (now - at)
        self._last = now, watts
        return self._joules
