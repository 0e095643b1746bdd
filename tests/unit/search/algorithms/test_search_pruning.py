"""When trials are stopped early."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from adaptrain.search.algorithms.pruners import Hyperband, Median, Pruner, SuccessiveHalving
from adaptrain.search.algorithms.registry import PRUNERS as REGISTERED

PRUNERS: list[Callable[[], Pruner]] = [
    lambda: Median(start=3),
    lambda: SuccessiveHalving(1, 27),
    lambda: Hyperband(1, 27),
]


def test_every_pruner_that_a_manifest_can_name_is_tested_here() -> None:
    assert {type(make()) for make in PRUNERS} == set(REGISTERED.values())


def run(pruner: Pruner, worths: list[float], most: int = 27) -> tuple[list[int], list[tuple[int, int, float, bool]]]:
    """Curves that rise to their worth, four side by side; at which step each ended, and all that was said."""
    ended, said = [0] * len(worths), []
    for first in range(0, len(worths), 4):
        going = list(range(first, min(first + 4, len(worths))))
        for step in range(1, most + 1):
            for number in list(going):
                value = worths[number] * (1 - 0.8**step)
                ended[number] = step
                said.append((number, step, value, pruner.report(number, step, value)))
                if said[-1][-1]:
                    going.remove(number)
    return ended, said


@pytest.mark.parametrize("make", PRUNERS)
def test_the_bad_end_early_and_the_best_go_on(make: Callable[[], Pruner]) -> None:
    worths = np.random.default_rng(0).random(80).tolist()
    ended, _ = run(make(), worths)
    best = int(np.argmax(worths))
    assert ended[best] == 27
    assert sum(ended) < 0.6 * 27 * len(worths)
    good = [end for end, worth in zip(ended, worths, strict=True) if worth > 0.9]
    bad = [end for end, worth in zip(ended, worths, strict=True) if worth < 0.3]
    assert np.mean(good) > 2 * np.mean(bad)


@pytest.mark.parametrize("make", PRUNERS)
def test_it_is_rebuilt_from_what_was_reported(make: Callable[[], Pruner]) -> None:
    _, said = run(make(), np.random.default_rng(1).random(30).tolist())
    again = make()
    assert [again.report(*each[:3]) for each in said] == [each[3] for each in said]
    assert any(each[3] for each in said)


@pytest.mark.parametrize("make", PRUNERS)
def test_a_trial_that_begins_again_is_judged_by_its_new_run(make: Callable[[], Pruner]) -> None:
    """However good or bad the run was that is no more."""
    _, said = run(make(), np.random.default_rng(2).random(30).tolist())

    def judged(*before: float) -> list[bool]:
        pruner = make()
        for each in said:
            pruner.report(*each[:3])
        for step, value in enumerate(before, start=1):
            pruner.report(98, step, value)
        pruner.forget(98)
        return [pruner.report(98, step, 0.05 * (1 - 0.8**step)) for step in range(1, 28)]

    assert judged() == judged(9.0, 9.0, 9.0, 9.0) == judged(0.0)
    assert any(judged())


@pytest.mark.parametrize("make", PRUNERS)
def test_what_is_not_a_number_ends_at_once_and_counts_for_nothing(make: Callable[[], Pruner]) -> None:
    pruner = make()
    assert all(pruner.report(number, 1, math.nan) for number in range(10))
    assert not pruner.report(10, 1, -1.0)


def test_the_median_is_that_of_the_others_means() -> None:
    pruner = Median(start=3, warmup=1)
    for number, values in enumerate(((0.0, 1.0), (0.0, 2.0), (0.0, 6.0))):
        for step, value in enumerate(values, 1):
            assert not pruner.report(number, step, value)
    assert not pruner.report(3, 1, -5.0)  # while it warms up
    assert pruner.report(3, 2, 0.9)  # means are 0.5, 1, 3
    assert not pruner.report(4, 2, 1.0)


def test_one_of_eta_goes_on_from_each_rung() -> None:
    pruner = SuccessiveHalving(2, 18, eta=3)
    assert pruner.rungs == (2, 6)
    assert not pruner.report(0, 1, 0.1)
    assert not pruner.report(0, 2, 0.1)
    assert [pruner.report(n, 2, value) for n, value in ((1, 0.0), (2, 0.2), (3, 0.15))] == [True, False, True]
    assert [pruner.report(n, 2, value) for n, value in ((4, 0.17), (5, 0.18), (6, 0.19))] == [True, False, False]
    # A trial that skips a rung's step has come to it all the same.
    assert pruner.report(7, 7, 0.0)


def test_brackets_have_the_papers_rungs_and_trials() -> None:
    pruner = Hyperband(1, 81)
    assert [bracket.rungs for bracket in pruner.brackets] == [(1, 3, 9, 27), (3, 9, 27), (9, 27), (27,), ()]
    numbers = [pruner.bracket(number) for number in range(143)]
    assert [numbers.count(bracket) for bracket in range(5)] == [81, 34, 15, 8, 5]  # algorithm 1, line 3
    assert not any(pruner.report(number, 80, 0.0) for number in range(143) if pruner.bracket(number) == 4)


def test_rungs_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"least \(9\) <= most \(3\)"):
        SuccessiveHalving(9, 3)
