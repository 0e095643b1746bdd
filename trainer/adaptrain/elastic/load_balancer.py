"""Who computes how much of a step: in proportion to measured speed, so that a slow worker doesn't hold the others up.

A gradient is a sum over samples, so how they are split changes no result, only how long it takes.
"""

import statistics
from collections.abc import Sequence
from typing import Protocol

import torch

EVERY_STEPS = 16
TOLERANCE = 0.15
"""Shares stay as they are while no worker's should change by more than this part of it."""
LARGEST = 2.0
"""A share is at most so many times an equal one: a worker's memory is sized for about that."""
PATIENCE = 4
"""A worker is a straggler when its share stays small for so many exchanges."""
SMALL = 0.6
"""Of an equal share."""
RECOVERY = 1.25
"""Who has an empty share, and so can't be measured, is taken to be so much faster each time, until it gets a sample."""


class Peers(Protocol):
    """What shares need of a group."""

    rank: int
    size: int

    def collect(self, value: float) -> list[float]: ...

    def note(self, message: str) -> None: ...


class LoadBalancer:
    """One worker's view; all members of a group compute the same shares from the same exchanged speeds."""

    def __init__(self) -> None:
        self._group: Peers | None = None
        self._weights: list[float] = [1.0]
        self._measured: list[float] = []
        self._speed = 0.0
        self._small = 0
        self._exchanged = -1
        """Step before which speeds were exchanged last in this group."""

    def mine(self, group: Peers, step: int, ids: torch.Tensor) -> torch.Tensor:
        """The part of a global batch that this worker computes; may be empty. Asked again before the same step, it
        exchanges nothing more.

        Raises:
            ProcessGroupBroken: somebody was lost while speeds were exchanged.
        """
        fresh = group is not self._group
        if fresh:
            self._group, self._weights, self._small = group, [1.0 / group.size] * group.size, 0
        if group.size > 1 and (fresh or (step % EVERY_STEPS == 0 and step != self._exchanged)):
            self._exchanged = step
            self._weights = balance(self._weights, group.collect(self._own_speed()))
            self._watch(group)
        counts = apportion(len(ids), self._weights)
        begin = sum(counts[: group.rank])
        return ids[begin : begin + counts[group.rank]]

    def took(self, samples: int, seconds: float) -> None:
        """This worker computed its share of a step."""
        if samples and seconds > 0:
            self._measured.append(samples / seconds)

    def _own_speed(self) -> float:
        """Samples a second since the last exchange; 0: never measured."""
        if self._measured:
            self._speed = statistics.median(self._measured)
            self._measured.clear()
        else:
            self._speed *= RECOVERY
        return self._speed

    def _watch(self, group: Peers) -> None:
        part = self._weights[group.rank] * group.size
        self._small = self._small + 1 if part < SMALL else 0
        if self._small == PATIENCE:
            group.note(f"computes slowly, and takes {part:.0%} of an equal share")


def balance(weights: Sequence[float], speeds: Sequence[float]) -> list[float]:
    """New weights, which add up to 1, from those of now and speeds (samples a second at those; 0: unknown).

    They go half of the way, so that one bad measurement does little.
    """
    known = [speed for speed in speeds if speed > 0]
    if not known:
        return list(weights)
    usual = statistics.median(known)
    filled = [speed if speed > 0 else usual for speed in speeds]
    aims = [speed / sum(filled) for speed in filled]
    if all(abs(aim - weight) <= TOLERANCE * weight for aim, weight in zip(aims, weights, strict=True)):
        return list(weights)
    return _bounded([(weight + aim) / 2 for aim, weight in zip(aims, weights, strict=True)], LARGEST / len(weights))


def _bounded(weights: list[float], most: float) -> list[float]:
    """Weights that add up to 1, none above ``most``: what is cut off goes to the others in proportion."""
    full: set[int] = set()
    while True:
        free = [i for i in range(len(weights)) if i not in full]
        factor = (1 - most * len(full)) / sum(weights[i] for i in free)
        over = [i for i in free if weights[i] * factor > most]
        if not over or len(over) == len(free):
            return [most if i in full else weights[i] * factor for i in range(len(weights))]
        full.update(over)


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers that add up to ``total``, in proportion to the weights (largest remainders, Hamilton's method)."""
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts
