"""When a trial is stopped early, beside any algorithm: rules over the values that trials report on their way.

Each is a ``Pruner``, which remembers reports and nothing else: told the same in the same order, it says the same, and
so it is rebuilt. BOHB (Falkner et al., 2018) is the TPE algorithm with ``Hyperband``.
"""

import math
import statistics
from collections.abc import Iterator


class Pruner:
    """Larger values are better. Steps begin at 1."""

    def report(self, number: int, step: int, value: float) -> bool:
        """What a trial has reached, at steps that grow.

        Returns:
            True: stop it. One whose value is not a number is stopped at once.
        """
        return math.isnan(value) or self.judge(number, step, value)

    def judge(self, number: int, step: int, value: float) -> bool:
        """The rule itself."""
        raise NotImplementedError

    def forget(self, number: int) -> None:
        """A trial begins again: what it has reported so far never was."""
        raise NotImplementedError


class Median(Pruner):
    """Stops a trial whose best value so far is below the median of the others' mean values up to this step (Golovin et
    al., 2017, section 3.2.2: Vizier).

    Args:
        start: trials that have come so far before any is stopped.
        warmup: steps in which none is stopped.
    """

    def __init__(self, start: int = 5, warmup: int = 0) -> None:
        self.start, self.warmup = start, warmup
        self._reports: dict[int, list[tuple[int, float]]] = {}

    def judge(self, number: int, step: int, value: float) -> bool:
        mine = self._reports.setdefault(number, [])
        mine.append((step, value))
        others = [
            statistics.fmean(each for at, each in reports if at <= step)
            for other, reports in self._reports.items()
            if other != number and reports[-1][0] >= step
        ]
        if step <= self.warmup or len(others) < self.start:
            return False
        return max(each for _, each in mine) < statistics.median(others)

    def forget(self, number: int) -> None:
        self._reports.pop(number, None)


class SuccessiveHalving(Pruner):
    """A trial goes on from a rung if it is among the best 1/eta of those that came there (Li et al., 2020, algorithm 2:
    ASHA, where none waits for others; a trial that is not promoted at once is stopped).

    Args:
        least: r: steps to the lowest rung.
        most: R: steps of a trial that is never stopped.
        eta: only one of so many goes on.
        skipped: s: rungs below the first one, which are skipped.

    Raises:
        ValueError: an argument that gives no rung.
    """

    def __init__(self, least: int, most: int, eta: int = 3, skipped: int = 0) -> None:
        if eta < 2 or least < 1 or most < least:
            raise ValueError(f"pruning: 1 <= least ({least}) <= most ({most}) and eta ({eta}) >= 2 are needed")
        self.rungs = tuple(_rungs(least * eta**skipped, most, eta))
        self.eta = eta
        self._came: dict[int, dict[int, float]] = {rung: {} for rung in self.rungs}

    def judge(self, number: int, step: int, value: float) -> bool:
        # A trial that reports now and then has come to each rung that lies behind it.
        for rung, came in self._came.items():
            if rung <= step and number not in came:
                came[number] = value
                better = sum(other > value for other in came.values())
                if better >= max(1, len(came) // self.eta):
                    return True
        return False

    def forget(self, number: int) -> None:
        for came in self._came.values():
            came.pop(number, None)


class Hyperband(Pruner):
    """Successive halving in brackets that begin at different rungs, since early values may mislead (Li et al., 2018,
    algorithm 1; Li et al., 2020, section 3.3: asynchronous).

    A trial's number decides its bracket: each has as many trials as in the paper, in a round of all.

    Args:
        least: r, steps.
        most: R, steps.
        eta: as in successive halving.

    Raises:
        ValueError: an argument that gives no rung.
    """

    def __init__(self, least: int, most: int, eta: int = 3) -> None:
        first = SuccessiveHalving(least, most, eta)
        brackets = len(first.rungs) + 1
        self.brackets = [first, *(SuccessiveHalving(least, most, eta, skipped) for skipped in range(1, brackets))]
        self._round: list[int] = []
        for skipped in range(brackets):
            left = brackets - 1 - skipped
            self._round += [skipped] * math.ceil(brackets / (left + 1) * eta**left)

    def bracket(self, number: int) -> int:
        """The rungs that a trial skips: those of most trials first."""
        return self._round[number % len(self._round)]

    def judge(self, number: int, step: int, value: float) -> bool:
        return self.brackets[self.bracket(number)].judge(number, step, value)

    def forget(self, number: int) -> None:
        self.brackets[self.bracket(number)].forget(number)


def _rungs(first: int, most: int, eta: int) -> Iterator[int]:
    """At the last step there is none: who came there is done."""
    while first < most:
        yield first
        first *= eta
