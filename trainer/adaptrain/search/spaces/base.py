"""Spaces whose architectures are a choice for each of a fixed number of dimensions."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Architecture = tuple[Any, ...]
"""The number of the choice in each dimension; in a space without dimensions, whatever it is made of."""
Codes = NDArray[np.int64]
"""Architectures as rows: [n, dimensions]."""
Features = NDArray[np.float64]
Graph = tuple[NDArray[np.bool_], NDArray[np.int64]]
"""Whether a node feeds another one [from, to], and what each does, as a number below the space's ``operations``."""
NEAR = 2
"""Steps between ordered choices that are neighbours."""


@dataclass(frozen=True)
class Diagram:
    """A part of an architecture for a person to look at.

    Attributes:
        nodes: their labels, of one or more lines.
        edges: from node to node, without a cycle.
        weights: of each edge; empty: they have none.
    """

    title: str
    nodes: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class Dimension:
    """One choice. Dimensions of the same ``kind`` have the same choices, and what is learned of one holds for all.

    The choices of an ``ordered`` one are numbers, and the ones next to each other are alike.
    """

    name: str
    choices: tuple[Any, ...]
    kind: str
    ordered: bool = False

    def near(self, choice: int) -> range:
        """The choices that are one step away, this one among them: all, or those up to ``NEAR`` places off."""
        last = len(self.choices)
        return range(max(0, choice - NEAR), min(last, choice + NEAR + 1)) if self.ordered else range(last)


class Space:
    """Any combination of choices that ``is_valid``.

    Raises:
        ValueError: a dimension without a choice, or of one kind with other choices than another one.
    """

    def __init__(self, dimensions: tuple[Dimension, ...]) -> None:
        kinds: dict[str, tuple[Any, ...]] = {}
        for dimension in dimensions:
            if not dimension.choices:
                raise ValueError(f"space: {dimension.name} has no choice: give it one, or leave it out")
            if kinds.setdefault(dimension.kind, dimension.choices) != dimension.choices:
                raise ValueError(f"space: {dimension.name} has other choices than others of kind {dimension.kind}")
        self.dimensions = dimensions
        self.sizes = tuple(len(dimension.choices) for dimension in dimensions)

    def is_valid(self, architecture: Architecture) -> bool:
        """Whether it can be built."""
        return True

    def key(self, architecture: Architecture) -> Hashable:
        """The same for all architectures that compute the same: they are never evaluated twice."""
        return architecture

    def describe(self, architecture: Architecture) -> dict[str, Any]:
        """What is chosen in each dimension, by its name."""
        return {d.name: d.choices[choice] for d, choice in zip(self.dimensions, architecture, strict=True)}

    def choice(self, architecture: Architecture) -> dict[str, Any]:
        """What a trial makes of it: a job's ``model``, ``parameters`` of the trial by name, or both."""
        return {"model": self.model(architecture)}

    def model(self, architecture: Architecture) -> dict[str, Any] | None:
        """It as a job's ``model``, its name and its args; None: only a function makes something of it."""
        return None

    def features(self, codes: Codes) -> Features:
        """Numbers that tell more of architectures than their choices do: [n, features], about one in size."""
        return np.zeros((len(codes), 0))

    @property
    def feature_groups(self) -> tuple[int, ...]:
        """How many features each group has whose weight is learned by itself: all are one group, if there are any."""
        count = self.features(np.zeros((1, len(self.sizes)), dtype=np.int64)).shape[1]
        return (count,) if count else ()

    @property
    def graph_operations(self) -> int:
        """How many kinds of nodes there are in graphs."""
        return sum(self.sizes) + 1

    def graph(self, architecture: Architecture) -> Graph:
        """What it computes, always with as many nodes; where nothing is known of that, each choice is a node of its own
        kind that feeds an output."""
        nodes = len(self.sizes)
        feeds = np.zeros((nodes + 1, nodes + 1), dtype=bool)
        feeds[:nodes, nodes] = True
        starts = np.cumsum((0, *self.sizes))
        return feeds, np.array([*(starts[:-1] + architecture), starts[-1]])

    def diagrams(self, architecture: Architecture) -> list[Diagram]:
        """Its parts to look at; none: it isn't a network."""
        return []

    def random(self, rng: np.random.Generator) -> Architecture:
        """Any valid architecture, each with the same probability."""
        while True:
            drawn = tuple(int(rng.integers(size)) for size in self.sizes)
            if self.is_valid(drawn):
                return drawn

    def neighbours(self, architecture: Architecture) -> list[Architecture]:
        """All valid ones that differ in one choice, by few places where the choices are ordered."""
        found = []
        for place, dimension in enumerate(self.dimensions):
            for choice in dimension.near(architecture[place]):
                if choice != architecture[place]:
                    other = (*architecture[:place], choice, *architecture[place + 1 :])
                    if self.is_valid(other):
                        found.append(other)
        return found

    def mutate(self, architecture: Architecture, rng: np.random.Generator) -> Architecture:
        """A valid one that differs in one choice, each with the same probability."""
        near = self.neighbours(architecture)
        return near[int(rng.integers(len(near)))] if near else architecture

    def crossover(self, one: Architecture, other: Architecture, rng: np.random.Generator) -> Architecture:
        """Each choice from either parent; the first parent where that can't be built."""
        child = tuple(a if rng.random() < 0.5 else b for a, b in zip(one, other, strict=True))
        return child if self.is_valid(child) else one

    def __len__(self) -> int:
        """How many combinations there are, valid or not."""
        count = 1
        for size in self.sizes:
            count *= size
        return count


def diagram(title: str, graph: Graph, names: Sequence[str]) -> Diagram:
    """A graph to look at, without the nodes between the first and the last that nothing connects.

    Args:
        names: of the graph's operations.
    """
    feeds, operations = graph
    last = len(operations) - 1
    kept = [n for n in range(last + 1) if n in (0, last) or feeds[n].any() or feeds[:, n].any()]
    edges = [(kept.index(a), kept.index(b)) for a in kept for b in kept if feeds[a, b]]
    return Diagram(title, tuple(names[operations[n]] for n in kept), tuple(edges))
