"""Shares follow speed, stay exact, and don't swing."""

import itertools
import random
from dataclasses import dataclass, field

import pytest
import torch
from adaptrain.elastic.load_balancer import LARGEST, PATIENCE, LoadBalancer, apportion, balance


@pytest.mark.parametrize("seed", range(50))
def test_apportioned_shares_add_up(seed: int) -> None:
    chance = random.Random(seed)
    weights = [chance.choice([0.0, chance.random()]) for _ in range(chance.randrange(1, 9))] + [0.1]
    total = chance.randrange(0, 300)
    counts = apportion(total, weights)
    assert sum(counts) == total
    assert all(abs(n - total * w / sum(weights)) < 1 for n, w in zip(counts, weights, strict=True))


def test_equal_weights_give_equal_shares() -> None:
    assert apportion(64, [1 / 3] * 3) == [22, 21, 21]


def test_nothing_changes_for_a_little() -> None:
    assert balance([0.5, 0.5], [100.0, 110.0]) == [0.5, 0.5]


def test_who_was_never_measured_counts_as_usual() -> None:
    assert balance([0.25] * 4, [100.0, 0.0, 100.0, 0.0]) == [0.25] * 4
    assert balance([0.5, 0.5], [0.0, 0.0]) == [0.5, 0.5]


def test_no_share_grows_beyond_its_bound() -> None:
    weights = [0.25] * 4
    for _ in range(50):
        weights = balance(weights, [1000.0, 1.0, 1.0, 1.0])
    assert max(weights) == pytest.approx(LARGEST / 4)
    assert sum(weights) == pytest.approx(1)


@dataclass
class Member:
    """One of a group whose workers compute at given speeds: a fixed time and a time for each sample."""

    rank: int
    size: int
    exchanged: list[float]
    notes: list[str] = field(default_factory=list)

    def collect(self, value: float) -> list[float]:
        return self.exchanged

    def note(self, message: str) -> None:
        self.notes.append(message)


def simulate(
    seconds: list[float], fixed: float, steps: int, noise: float = 0.0
) -> tuple[list[list[int]], list[Member]]:
    """Shares of each step of a group in which worker i takes ``fixed + seconds[i] * samples``."""
    chance, size = random.Random(0), len(seconds)
    exchanged = [0.0] * size
    members = [Member(rank, size, exchanged) for rank in range(size)]
    views = [LoadBalancer() for _ in seconds]
    history, ids = [], torch.arange(64)
    for step in range(steps):
        exchanged[:] = [view._own_speed() if step % 16 == 0 else 0.0 for view in views]
        parts = [view.mine(member, step, ids) for view, member in zip(views, members, strict=True)]
        assert torch.cat(parts).tolist() == ids.tolist()
        history.append([len(part) for part in parts])
        for view, part, each in zip(views, parts, seconds, strict=True):
            view.took(len(part), (fixed + each * len(part)) * (1 + noise * chance.uniform(-1, 1)))
    return history, members


@pytest.mark.parametrize("fixed", [0.0, 0.05])
def test_a_slow_worker_gets_less_until_all_take_as_long(fixed: float) -> None:
    seconds = [0.01, 0.01, 0.03]
    history, members = simulate(seconds, fixed, 16 * 30)
    took = [fixed + each * n for each, n in zip(seconds, history[-1], strict=True)]
    assert max(took) <= 1.35 * min(took)
    equal = fixed + 0.03 * 22
    assert max(took) < 0.75 * equal
    assert members[2].notes
    assert not members[0].notes


def test_equal_workers_under_noise_keep_equal_shares() -> None:
    history, members = simulate([0.01] * 4, 0.01, 16 * 20, noise=0.3)
    assert {tuple(counts) for counts in history} == {(16, 16, 16, 16)}
    assert not any(member.notes for member in members)


def test_an_empty_share_is_tried_again() -> None:
    history, _ = simulate([0.001, 5.0], 0.0, 16 * 60)
    empty = [counts[1] == 0 for counts in history]
    assert any(empty)
    assert any(not now for before, now in itertools.pairwise(empty) if before), "it never gets a sample again"


def test_a_straggler_is_named_once() -> None:
    _, members = simulate([0.01, 0.01, 0.05], 0.0, 16 * (PATIENCE + 20))
    (note,) = members[2].notes
    assert "computes slowly, and takes" in note
