"""Which architectures are looked at by a model, to find the one to try next."""

from collections.abc import Hashable, Set

import numpy as np

from adaptrain.search.spaces.base import Architecture, Space

MUTANTS = 100
RANDOM = 100


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


def unlike(space: Space, found: list[Architecture], seen: Set[Hashable]) -> list[Architecture]:
    """Those whose keys were not seen, one of each."""
    fresh: dict[Hashable, Architecture] = {}
    for one in found:
        if (same := space.key(one)) not in seen:
            fresh.setdefault(same, one)
    return list(fresh.values())
