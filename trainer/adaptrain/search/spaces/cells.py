"""Two cells of nodes that add up two operations each: NASNet's (Zoph et al., 2018) and DARTS's (Liu et al., 2019)."""

from collections.abc import Hashable, Iterator, Sequence
from functools import lru_cache
from itertools import combinations, permutations, product
from typing import Any

import numpy as np

from adaptrain.config.arguments import one_of, positive, several
from adaptrain.search.spaces.base import Architecture, Codes, Diagram, Dimension, Features, Space

Node = tuple[tuple[str, int], tuple[str, int]]
"""Two operations, and what each is applied to: 0 and 1 are the cell's inputs, 2 the first node."""
CELLS = ("normal", "reduce")
INPUTS = 2
DARTS = (
    *("max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5"),
    *("dil_conv_3x3", "dil_conv_5x5"),
)
NASNET = (
    *("identity", "conv_1x3_3x1", "conv_1x7_7x1", "dil_conv_3x3", "avg_pool_3x3", "max_pool_3x3", "max_pool_5x5"),
    *("max_pool_7x7", "conv_1x1", "conv_3x3", "sep_conv_3x3", "sep_conv_5x5", "sep_conv_7x7"),
)


class TwoCells(Space):
    """A normal cell, and one that halves the size.

    Args:
        model: that is made of them.
        cells: in the model, at least 3.
        width: channels of the model's first cell.
        operations: that there are.
    """

    def __init__(
        self, dimensions: Sequence[Dimension], model: str, cells: int, width: int, operations: tuple[str, ...]
    ) -> None:
        super().__init__(tuple(dimensions))
        if positive("cells", cells) < 3:
            raise ValueError(f"cells must be an integer of at least 3, since two of them reduce, not {cells}")
        self._name, self.size = model, {"cells": int(cells), "width": positive("width", width)}
        self.operations = operations

    def cells(self, architecture: Architecture) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
        """The nodes of both cells."""
        raise NotImplementedError

    def model(self, architecture: Architecture) -> dict[str, Any]:
        texts = [
            "+".join("|" + "|".join(f"{operation}~{start}" for operation, start in node) + "|" for node in cell)
            for cell in self.cells(architecture)
        ]
        return {"name": self._name, "args": {**dict(zip(CELLS, texts, strict=True)), **self.size}}

    def diagrams(self, architecture: Architecture) -> list[Diagram]:
        """Each cell: what it is fed, operations, the nodes that add them up, and the output."""
        found = []
        for title, cell in zip(CELLS, self.cells(architecture), strict=True):
            labels, edges, places = ["cell before last", "last cell"], list[tuple[int, int]](), [0, 1]
            for number, node in enumerate(cell, INPUTS):
                places.append(len(labels) + len(node))
                for operation, start in node:
                    edges += [(places[start], len(labels)), (len(labels), places[-1])]
                    labels.append(operation)
                labels.append(f"+ {number}")
            edges += [(places[number], len(labels)) for number in self.joined(cell)]
            found.append(Diagram(f"{title} cell", (*labels, "output"), tuple(edges)))
        return found

    def joined(self, cell: tuple[Node, ...]) -> list[int]:
        """The nodes that are the cell's output."""
        return list(range(INPUTS, INPUTS + len(cell)))

    def key(self, architecture: Architecture) -> Hashable:
        return tuple(canonical(cell) for cell in self.cells(architecture))

    def features(self, codes: Codes) -> Features:
        """In each cell, how often each operation is there, applied to an input and to a node, as a share of all."""
        kinds = {operation: n for n, operation in enumerate(self.operations)}
        found = np.zeros((len(codes), 2, 2, len(kinds)))
        for row, architecture in zip(found, codes.tolist(), strict=True):
            for counts, cell in zip(row, self.cells(tuple(architecture)), strict=True):
                for operation, start in (edge for node in cell for edge in node):
                    counts[int(start >= INPUTS), kinds[operation]] += 1 / len(cell)
        return found.reshape(len(codes), -1)


class Nasnet(TwoCells):
    """Each block adds two operations, each applied to an input of the cell or to a block before.

    Args:
        blocks: in a cell.
        operations: some of the paper's; absent: all of them.
        cells: in the model, at least 3.
        width: channels of the model's first cell.
    """

    def __init__(self, blocks: int = 5, operations: Sequence[str] = NASNET, cells: int = 8, width: int = 16) -> None:
        self._blocks = positive("blocks", blocks)
        known = several("operations", operations, lambda name, value: one_of(name, value, NASNET))
        dimensions = []
        for cell, block in product(CELLS, range(self._blocks)):
            for side in "ab":
                before = tuple(range(INPUTS + block))
                dimensions.append(Dimension(f"{cell}/{block + INPUTS}/{side}/input", before, f"input{block}"))
                dimensions.append(Dimension(f"{cell}/{block + INPUTS}/{side}/operation", known, "operation"))
        super().__init__(dimensions, "nasnet", cells, width, known)

    def cells(self, architecture: Architecture) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
        chosen = iter(architecture)

        def edge() -> tuple[str, int]:
            start = next(chosen)
            return self.operations[next(chosen)], start

        normal, reduce = (tuple((edge(), edge()) for _ in range(self._blocks)) for _ in CELLS)
        return normal, reduce

    def joined(self, cell: tuple[Node, ...]) -> list[int]:
        """Those that feed no other one, the cell's inputs among them."""
        feeding = {start for node in cell for _, start in node}
        return [number for number in range(INPUTS + len(cell)) if number not in feeding]


class Darts(TwoCells):
    """Each node adds an operation on each of two different ones before it.

    Args:
        nodes: in a cell.
        operations: some of the paper's; absent: all of them (without ``none``, which no cell is left with).
        cells: in the model, at least 3.
        width: channels of the model's first cell.
    """

    def __init__(self, nodes: int = 4, operations: Sequence[str] = DARTS, cells: int = 8, width: int = 16) -> None:
        known = several("operations", operations, lambda name, value: one_of(name, value, DARTS))
        self.nodes = nodes
        self._pairs = [tuple(combinations(range(INPUTS + node), 2)) for node in range(positive("nodes", nodes))]
        dimensions = []
        for cell, (node, pairs) in product(CELLS, enumerate(self._pairs)):
            if len(pairs) > 1:
                written = tuple(f"{a},{b}" for a, b in pairs)
                dimensions.append(Dimension(f"{cell}/{node + INPUTS}/inputs", written, f"inputs{node}"))
            dimensions += [Dimension(f"{cell}/{node + INPUTS}/{side}", known, "operation") for side in "ab"]
        super().__init__(dimensions, "darts", cells, width, known)

    def cells(self, architecture: Architecture) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
        chosen = iter(architecture)
        normal, reduce = (tuple(self._node(chosen, pairs) for pairs in self._pairs) for _ in CELLS)
        return normal, reduce

    def _node(self, chosen: Iterator[int], pairs: tuple[tuple[int, int], ...]) -> Node:
        one, other = pairs[next(chosen)] if len(pairs) > 1 else pairs[0]
        return (self.operations[next(chosen)], one), (self.operations[next(chosen)], other)

    def encode(self, cells: Sequence[Sequence[Node]]) -> Architecture:
        """The architecture whose ``cells`` these are."""
        found: list[int] = []
        for cell in cells:
            for pairs, node in zip(self._pairs, cell, strict=True):
                (a, one), (b, other) = sorted(node, key=lambda edge: edge[1])
                found += [pairs.index((one, other))] if len(pairs) > 1 else []
                found += [self.operations.index(a), self.operations.index(b)]
        return tuple(found)


@lru_cache(maxsize=1 << 16)
def canonical(cell: tuple[Node, ...]) -> tuple[Node, ...]:
    """The same for all cells that differ in the order of their nodes, and of what a node adds.

    Nodes are sorted by all that they are made of; those that this can't tell apart are tried in each order.
    """
    made: list[tuple[int, str]] = [(0, "0"), (0, "1")]
    for node in cell:
        depth = 1 + max(made[start][0] for _, start in node)
        made.append((depth, repr(sorted((operation, made[start]) for operation, start in node))))
    alike: dict[tuple[int, str], list[int]] = {}
    for number in range(INPUTS, len(made)):
        alike.setdefault(made[number], []).append(number)
    orders = product(*(permutations(alike[one]) for one in sorted(alike)))
    return min(_renumbered(cell, [number for group in order for number in group]) for order in orders)


def _renumbered(cell: tuple[Node, ...], order: list[int]) -> tuple[Node, ...]:
    new = {0: 0, 1: 1} | {old: number for number, old in enumerate(order, INPUTS)}
    nodes = []
    for old in order:
        one, other = sorted((operation, new[start]) for operation, start in cell[old - INPUTS])
        nodes.append((one, other))
    return tuple(nodes)
