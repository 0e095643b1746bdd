"""Feed-forward networks of any topology, as NEAT encodes them (Stanley and Miikkulainen, 2002, section 3).

A genome is its connections, sorted: (source, target, weight, enabled). Nodes are the inputs 0, 1, …, a bias, the
outputs, and hidden ones, each made by splitting a connection. A gene's historical marking is what it connects: a hidden
node's number comes from the connection that it split, so that the same innovation has the same marking wherever it
arises.
"""

import hashlib
from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import cast

import numpy as np
from numpy.typing import NDArray

from adaptrain.search.spaces.base import Architecture, Diagram, Space

Floats = NDArray[np.float64]
Genome = tuple[tuple[int, int, float, bool], ...]
Genes = dict[tuple[int, int], tuple[float, bool]]
"""Weight of each connection, and whether it is enabled."""

ADD_NODE = 0.03
ADD_CONNECTION = 0.05
"""Probabilities of structural mutations (section 4.1)."""
NEW_WEIGHT = 0.1
"""Probability that a weight is drawn anew, where weights mutate; else it moves."""
MOVE = 1.5
WIDTH = 1.5
"""Standard deviations of a weight's move, and of a new weight."""
LARGEST = 8.0
"""Of weights."""
STILL_DISABLED = 0.75
"""Probability that a gene is disabled if it is in either parent."""
STEEP = 4.9
"""Of the sigmoid, so that small weights suffice."""


class Topology(Space):
    """
    Args:
        inputs: numbers that go in, beside the bias.
        outputs: numbers between 0 and 1 that come out.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(())
        self.inputs, self.outputs = inputs, outputs
        self._sources = range(inputs + 1)
        self._targets = range(inputs + 1, inputs + 1 + outputs)

    def random(self, rng: np.random.Generator) -> Architecture:
        """A minimal one: every input to every output, no hidden node (section 3.4)."""
        return _genome({(a, b): (_new(rng), True) for a in self._sources for b in self._targets})

    def is_valid(self, architecture: Architecture) -> bool:
        """Whether no signal comes back to where it was, and none leaves an output or enters an input."""
        genes = genes_of(architecture)
        ends = {a for a, _ in genes}, {b for _, b in genes}
        return not ends[0] & set(self._targets) and not ends[1] & set(self._sources) and _order(genes) is not None

    def key(self, architecture: Architecture) -> Hashable:
        return tuple((place, weight) for place, (weight, enabled) in genes_of(architecture).items() if enabled)

    def mutate(self, architecture: Architecture, rng: np.random.Generator) -> Architecture:
        """With a node or a connection more, or with other weights."""
        genes, chance = dict(genes_of(architecture)), rng.random()
        if chance < ADD_NODE:
            self._split(genes, rng)
        elif chance < ADD_NODE + ADD_CONNECTION and (free := self._free(genes)):
            genes[free[int(rng.integers(len(free)))]] = _new(rng), True
        else:
            for place, (weight, enabled) in genes.items():
                anew = rng.random() < NEW_WEIGHT
                moved = _new(rng) if anew else weight + MOVE * float(rng.standard_normal())
                genes[place] = min(max(moved, -LARGEST), LARGEST), enabled
        return _genome(genes)

    def crossover(self, one: Architecture, other: Architecture, rng: np.random.Generator) -> Architecture:
        """Matching genes from either parent, all others from the first, which is the fitter one (figure 4)."""
        genes, others = dict(genes_of(one)), genes_of(other)
        for place in genes.keys() & others.keys():
            both = genes[place], others[place]
            weight = both[int(rng.random() < 0.5)][0]
            enabled = all(each[1] for each in both) or bool(rng.random() > STILL_DISABLED)
            genes[place] = weight, enabled
        return _genome(genes)

    def diagrams(self, architecture: Architecture) -> list[Diagram]:
        """Inputs, outputs, and hidden nodes that something enabled enters or leaves."""
        enabled = {place: weight for place, (weight, on) in genes_of(architecture).items() if on}
        ends = {end for place in enabled for end in place}
        hidden = sorted(ends - set(self._sources) - set(self._targets))
        labels = {n: f"input {n}" for n in range(self.inputs)} | {self.inputs: "bias"}
        labels |= {node: f"hidden {n}" for n, node in enumerate(hidden, 1)}
        labels |= {node: f"output {n}" for n, node in enumerate(self._targets)}
        places = {node: n for n, node in enumerate(labels)}
        edges = tuple((places[a], places[b]) for a, b in enabled)
        return [Diagram("network", tuple(labels.values()), edges, tuple(enabled.values()))]

    def network(self, genome: Architecture) -> Callable[[Floats], Floats]:
        """What it computes: [n, inputs] -> [n, outputs]."""
        genes, enters = genes_of(genome), dict[int, list[tuple[int, float]]]()
        order = cast(list[int], _order(genes))
        for (a, b), (weight, enabled) in genes.items():
            if enabled:
                enters.setdefault(b, []).append((a, weight))

        def forward(given: Floats) -> Floats:
            values: dict[int, Floats] = {n: given[:, n] for n in range(self.inputs)}
            values[self.inputs] = np.ones(len(given))
            for node in order:
                if node not in self._sources:
                    total = sum((weight * values[a] for a, weight in enters.get(node, [])), np.zeros(len(given)))
                    values[node] = 1.0 / (1.0 + np.exp(-np.clip(STEEP * total, -60.0, 60.0)))
            return np.stack([values[node] for node in self._targets], axis=1)

        return forward

    def _split(self, genes: Genes, rng: np.random.Generator) -> None:
        """A node on a connection: the way in weighs 1, the way out what the connection did (figure 3)."""
        enabled = sorted(place for place, gene in genes.items() if gene[1])
        if not enabled:
            return
        a, b = enabled[int(rng.integers(len(enabled)))]
        weight, again = genes[a, b][0], 0
        while (a, node := self._hidden(a, b, again)) in genes:
            again += 1
        genes |= {(a, b): (weight, False), (a, node): (1.0, True), (node, b): (weight, True)}

    def _hidden(self, a: int, b: int, again: int) -> int:
        """The number of the node that splits this connection for the ``again``-th time."""
        digest = hashlib.blake2b(f"{a}-{b}-{again}".encode(), digest_size=6).digest()
        return self._targets.stop + int.from_bytes(digest)

    def _free(self, genes: Genes) -> list[tuple[int, int]]:
        """Connections that could be added: those along the order in which nodes are computed."""
        order = cast(list[int], _order(genes))
        hidden = [node for node in order if node not in self._sources and node not in self._targets]
        order = [*self._sources, *hidden, *self._targets]
        return [
            (a, b)
            for n, a in enumerate(order)
            for b in order[n + 1 :]
            if a not in self._targets and b not in self._sources and (a, b) not in genes
        ]


@lru_cache(maxsize=1 << 12)
def genes_of(genome: Architecture) -> Genes:
    """By what they connect; not to be changed."""
    return {(a, b): (weight, enabled) for a, b, weight, enabled in cast(Genome, genome)}


def _genome(genes: Genes) -> Architecture:
    genome: Genome = tuple((a, b, weight, enabled) for (a, b), (weight, enabled) in sorted(genes.items()))
    return cast(Architecture, genome)


def _new(rng: np.random.Generator) -> float:
    return WIDTH * float(rng.standard_normal())


def _order(genes: Genes) -> list[int] | None:
    """Nodes, each after all that lead to it by genes, enabled or not; nothing if there is a cycle."""
    into: dict[int, int] = {}
    out: dict[int, list[int]] = {}
    for a, b in genes:
        into[b] = into.get(b, 0) + 1
        into.setdefault(a, 0)
        out.setdefault(a, []).append(b)
    ready = sorted(node for node, count in into.items() if not count)
    for node in ready:
        for after in out.get(node, []):
            into[after] -= 1
            if not into[after]:
                ready.append(after)
    return ready if len(ready) == len(into) else None
