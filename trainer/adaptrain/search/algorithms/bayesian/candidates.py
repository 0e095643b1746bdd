"""Which architectures are looked at by a model, to find the one to try next."""

from collections.abc import Callable, Hashable, Set

import numpy as np
from numpy.typing import NDArray

from adaptrain.search.spaces.base import Architecture, Space

PARENTS = 10
MUTANTS = 100
RANDOM = 100
CLIMBS = 3
"""So often the neighbours of the most promising candidates become candidates."""


def candidates(
    space: Space, parents: list[Architecture], seen: Set[Hashable], rng: np.random.Generator
) -> list[Architecture]:
    """Neighbours of the parents, mutants of two steps, and random ones, without those whose keys were seen."""
    found = [near for parent in parents for near in space.neighbours(parent)]
    for _ in range(MUTANTS):
        mutant = list(parents[int(rng.integers(len(parents)))])
        for place in rng.integers(len(mutant), size=2):
            if space.sizes[place] > 1:
                # Any other choice.
                mutant[place] = int(mutant[place] + rng.integers(1, space.sizes[place])) % space.sizes[place]
        if space.is_valid(tuple(mutant)):
            found.append(tuple(mutant))
    found += [space.random(rng) for _ in range(RANDOM)]
    return unlike(space, found, seen)


def climb(
    space: Space,
    pool: list[Architecture],
    seen: Set[Hashable],
    gain: Callable[[list[Architecture]], NDArray[np.float64]],
) -> tuple[Architecture, float]:
    """The candidate of the largest gain in a pool and about it, and its gain.

    Args:
        gain: of each of [n] candidates.
    """
    gains, found = gain(pool), set(pool)
    for _ in range(CLIMBS):
        top = [pool[i] for i in np.argsort(-gains, kind="stable")[:PARENTS]]
        near_top = {other: None for one in top for other in space.neighbours(one) if other not in found}
        if not (more := unlike(space, list(near_top), seen)):
            break
        found |= near_top.keys()
        pool, gains = pool + more, np.append(gains, gain(more))
    best = int(np.argmax(gains))
    return pool[best], float(gains[best])


def unlike(space: Space, found: list[Architecture], seen: Set[Hashable]) -> list[Architecture]:
    """Those whose keys were not seen, one of each."""
    fresh: dict[Hashable, Architecture] = {}
    for one in found:
        if (same := space.key(one)) not in seen:
            fresh.setdefault(same, one)
    return list(fresh.values())
