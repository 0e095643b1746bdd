"""Trials for the tests of searches: functions whose answers are known."""

import os
import time
from typing import Any

from adaptrain.search.evaluation.function_trial import Trial


def score(trial: Trial) -> dict[str, float]:
    """Best where all choices are 3; takes a moment."""
    time.sleep(0.02)
    chosen = list(trial.choices.values())
    return {"score": sum((0.0, 1.0, 0.4, 2.0)[int(one)] for one in chosen), "cost": float(sum(map(int, chosen)))}


def deaf(trial: Trial) -> float:
    """Looks at one choice of many."""
    return float(trial.choices["c1"])


def the_last_takes_long(trial: Trial) -> float:
    """Of seven trials."""
    time.sleep(3.0 if trial.number == 6 else 0.02)
    return float(trial.number)


def rising(trial: Trial) -> float:
    """Reports as it goes on; the more is chosen, the better from the first step."""
    worth = sum(map(float, trial.choices.values()))
    for step in range(1, 21):
        trial.report(step, score=worth * step)
        time.sleep(0.01)
    return worth * 20


def naughty(trial: Trial) -> Any:
    """Ends in the way that was chosen."""
    match trial.choices["way"]:
        case "good":
            return {"score": 1.0}
        case "raises":
            raise RuntimeError("this architecture is bad")
        case "dies":
            os._exit(3)
        case "killed":
            os.kill(os.getpid(), 9)
        case "nan":
            return {"score": float("nan")}
        case "forgets":
            return {"other": 1.0}
        case "sleeps":
            time.sleep(60)
        case "text":
            return "score"
    return None
