"""NEAT: NeuroEvolution of Augmenting Topologies (Stanley and Miikkulainen, 2002, sections 3.2 to 3.4).

Networks begin minimal. Those that are alike are a species, which competes as one: so a new structure has time to learn
its weights. Numbers of innovations are given in the order in which they are first told of.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from adaptrain.search.algorithms.base import Algorithm, Proposal
from adaptrain.search.spaces.base import Architecture
from adaptrain.search.spaces.topology import Topology, genes_of

EXCESS, DISJOINT, WEIGHTS = 1.0, 1.0, 0.4
"""c1, c2 and c3 of equation 1."""
SMALL = 20
"""N is 1 in genomes of fewer genes."""
SURVIVE = 0.2
"""Part of a species that become parents."""
MUTATED_ONLY = 0.25
MUTATED = 0.8
"""Probability that a child of two parents is mutated, too."""
OTHER_SPECIES = 0.001
"""Probability that the second parent is of any species."""
STAGNANT = 15
"""A species that hasn't improved for so many generations has no children any more,"""
ALL_STAGNANT = 20
"""and if none has, only the best two have."""
CHAMPION = 5
"""A species of more networks keeps its best one."""


@dataclass
class Species:
    representative: Architecture
    members: list[tuple[float, Architecture]] = field(default_factory=list)
    """Of this generation, by fitness."""
    best: float = -np.inf
    improved: int = 0
    """The generation in which it did last."""
    parents: list[tuple[float, Architecture]] = field(default_factory=list)
    """Of the generation before, best first."""


class Neat(Algorithm):
    """
    Args:
        space: of networks.
        population: networks in a generation.
        threshold: delta_t: who is nearer to a species' representative belongs to it.
    """

    space: Topology

    def __init__(self, space: Topology, seed: int, population: int = 150, threshold: float = 3.0) -> None:
        super().__init__(space, seed)
        self.population, self.threshold = population, threshold
        self._innovations: dict[tuple[int, int], int] = {}
        self._species: list[Species] = []
        self._shares: list[float] = []
        """How many of the children each species has, up to it."""
        self._best, self._improved, self._generation = -np.inf, 0, 0

    def tell(self, architecture: Architecture, value: float) -> None:
        super().tell(architecture, value)
        for place in genes_of(architecture):
            self._innovations.setdefault(place, len(self._innovations))
        if np.isfinite(value):
            self._join(architecture, value)
        if len(self.told) % self.population == 0:
            self._breed()

    def propose(self, rng: np.random.Generator, pending: Sequence[Architecture]) -> Proposal:
        if not self._shares:
            return Proposal(self.unseen(rng))
        species = self._species[self._drawn(rng)]
        parents = [_any(species, rng)]
        if rng.random() >= MUTATED_ONLY:
            far = rng.random() < OTHER_SPECIES
            parents.append(_any(self._species[self._drawn(rng)] if far else species, rng))
        parents.sort(key=lambda parent: -parent[0])
        child = parents[0][1]
        if len(parents) > 1:
            child = self.space.crossover(child, parents[1][1], rng)
        if len(parents) == 1 or rng.random() < MUTATED:
            child = self.space.mutate(child, rng)
        return Proposal(child, {"species": len(self._shares), "fitness": parents[0][0]})

    def distance(self, one: Architecture, other: Architecture) -> float:
        """Equation 1."""
        mine, yours = genes_of(one), genes_of(other)
        shared = mine.keys() & yours.keys()
        numbers = self._innovations
        reach = min(max((numbers[gene] for gene in genes), default=-1) for genes in (mine, yours))
        unmatched = [numbers[gene] for gene in mine.keys() ^ yours.keys()]
        excess = sum(number > reach for number in unmatched)
        apart = sum(abs(mine[gene][0] - yours[gene][0]) for gene in shared) / max(len(shared), 1)
        size = max(len(mine), len(yours))
        weighted = EXCESS * excess + DISJOINT * (len(unmatched) - excess)
        return weighted / (size if size >= SMALL else 1) + WEIGHTS * apart

    def _join(self, architecture: Architecture, value: float) -> None:
        for species in self._species:
            if self.distance(architecture, species.representative) < self.threshold:
                break
        else:
            self._species.append(species := Species(architecture, improved=self._generation))
        species.members.append((value, architecture))

    def _breed(self) -> None:
        """End a generation: who may have children, and how many."""
        self._generation += 1
        rng = np.random.default_rng([self.seed, self._generation, 0])
        living = [species for species in self._species if species.members]
        for species in living:
            species.members.sort(key=lambda member: -member[0])
            if species.members[0][0] > species.best:
                species.best, species.improved = species.members[0][0], self._generation
        living.sort(key=lambda species: -species.members[0][0])
        if not living:
            return
        if living[0].members[0][0] > self._best:
            self._best, self._improved = living[0].members[0][0], self._generation
        fertile = [n == 0 or self._generation - each.improved < STAGNANT for n, each in enumerate(living)]
        if self._generation - self._improved >= ALL_STAGNANT:
            fertile = [n < 2 for n in range(len(living))]
            for species in living[:2]:
                species.improved = self._generation
            self._improved = self._generation
        least = min(0.0, min(member[0] for species in living for member in species.members))
        shares = []
        for species, may in zip(living, fertile, strict=True):
            # Fitness is shared (equation 2), so what a species' members have in all is their mean.
            shares.append(may * float(np.mean([fitness - least for fitness, _ in species.members])))
            species.parents = species.members[: int(np.ceil(SURVIVE * len(species.members)))]
            species.representative = _any(species, rng, species.members)[1]
            species.members = species.members[:1] if len(species.members) > CHAMPION else []
        if not sum(shares):
            shares = [float(may) for may in fertile]
        self._species, self._shares = living, list(np.cumsum(shares) / sum(shares))

    def _drawn(self, rng: np.random.Generator) -> int:
        return min(int(np.searchsorted(self._shares, rng.random(), side="right")), len(self._shares) - 1)


def _any(
    species: Species, rng: np.random.Generator, of: list[tuple[float, Architecture]] | None = None
) -> tuple[float, Architecture]:
    chosen = of or species.parents
    return chosen[int(rng.integers(len(chosen)))]
