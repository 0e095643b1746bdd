"""Time to ask at 1,000 trials of history on NAS-Bench-201, beside Optuna's TPE. Value: our default's median, ms."""

import argparse
import statistics
import time
from typing import Any

import numpy as np

from bench.algorithms import ALGORITHMS, make
from bench.report import emit
from bench.tables import SPACE, OptunaSampler

BARS = {name: 1.0 for name, (module, *_) in ALGORITHMS.items() if module != "optuna_samplers"}
BARS |= {"auto": 50.0, "predictor": 50.0}
"""ms; Optuna's samplers take what they take."""


def asks(algorithm: Any, history: int, turns: int) -> list[float]:
    """Milliseconds of each ask, after a history that it did not ask for."""
    rng = np.random.default_rng(0)
    worth = rng.random((6, 5))
    found = []
    for number in range(history + turns):
        cell = SPACE.random(rng)
        if number >= history or isinstance(algorithm, OptunaSampler):
            began = time.perf_counter()
            cell = algorithm.ask(number).architecture
            found.append(1e3 * (time.perf_counter() - began))
        algorithm.tell(cell, float(sum(worth[d, c] for d, c in enumerate(cell)) + 0.01 * rng.standard_normal()))
    return found[-turns:]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--history", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=50)
    arguments = parser.parse_args()
    medians = {}
    for name in (*ALGORITHMS, "Optuna TPE"):
        algorithm = OptunaSampler(SPACE, 0) if name == "Optuna TPE" else make(name, 0)
        each = asks(algorithm, arguments.history, arguments.turns)[1:]  # the first one learns the whole history
        medians[name] = statistics.median(each)
        print(f"{name:>22} {medians[name]:8.2f} ms, at most {max(each):.2f}", flush=True)
    ok = all(medians[name] <= bar for name, bar in BARS.items())
    emit("ask", medians["auto"], "ms", "Optuna TPE", medians["Optuna TPE"], ok, medians=medians)
