"""What every search algorithm is: an object that is asked for architectures, and told how good they are.

It draws random numbers from (seed, number of the trial) alone, so that the same history asks the same.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from adaptrain.search.spaces.base import Architecture, Space


@dataclass(frozen=True)
class Proposal:
    """An architecture to try, and why."""

    architecture: Architecture
    why: dict[str, Any] = field(default_factory=dict)
    """JSON-able: parents, acquisition, predicted mean and deviation, …"""


class Algorithm:
    """Maximizes.

    Args:
        space: where to search.
        seed: of all that is random.
    """

    def __init__(self, space: Space, seed: int) -> None:
        self.space = space
        self.seed = seed
        self.told: list[tuple[Architecture, float]] = []
        self.seen: set[Hashable] = set()
        """Keys of architectures that were told or are pending."""

    def ask(self, number: int, pending: Sequence[Architecture] = ()) -> Proposal:
        """What to try next.

        Args:
            number: of the trial, which is never used twice.
            pending: what others try now.
        """
        self.seen |= {self.space.key(architecture) for architecture in pending}
        return self.propose(np.random.default_rng([self.seed, number]), pending)

    def tell(self, architecture: Architecture, value: float) -> None:
        """How good one is; not a number: it failed. It need not have been asked for here: so a search is resumed."""
        self.seen.add(self.space.key(architecture))
        self.told.append((architecture, value))

    def propose(self, rng: np.random.Generator, pending: Sequence[Architecture]) -> Proposal:
        """The algorithm itself."""
        raise NotImplementedError

    def pick(self) -> Architecture:
        """Which of those that were tried is thought to be the best."""
        if ranked := self.ranked():
            return ranked[0]
        return max((one for one in self.told if np.isfinite(one[1])), key=lambda one: one[1])[0]

    def ranked(self) -> list[Architecture]:
        """Those that were tried, the likely best first; none: the largest value is the best."""
        return []

    def unseen(self, rng: np.random.Generator, tries: int = 1000) -> Architecture:
        """Any architecture that was not tried; one that was, if there seem to be no others."""
        for _ in range(tries):
            if self.space.key(drawn := self.space.random(rng)) not in self.seen:
                return drawn
        return drawn

    def fresh(self, found: Architecture, rng: np.random.Generator, steps: int = 100) -> Architecture:
        """This one, or if it was tried or can't be built, one that so many mutations lead to."""
        for _ in range(steps):
            if self.space.is_valid(found) and self.space.key(found) not in self.seen:
                return found
            found = self.space.mutate(found, rng)
        return self.unseen(rng)
