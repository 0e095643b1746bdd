"""The cell of NAS-Bench-201 (Dong and Yang, 2020): four nodes, an operation on each of the six edges between them."""

from collections.abc import Hashable
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from adaptrain.config.arguments import positive
from adaptrain.search.spaces.base import Architecture, Codes, Diagram, Dimension, Features, Graph, Space, diagram

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
NONE, SKIP = 0, 1
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""From node to node; node 0 is the cell's input, node 3 its output. The benchmark numbers them so."""
PATHS = ((3,), (0, 4), (1, 5), (0, 2, 5))
"""Edges of each way from the input to the output."""


class NasBench201(Space):
    """5^6 cells.

    Args:
        cells: in each stage of the model.
        width: channels of the model's first stage.
    """

    def __init__(self, cells: int = 5, width: int = 16) -> None:
        self.size = {"cells": positive("cells", cells), "width": positive("width", width)}
        super().__init__(tuple(Dimension(f"{a}->{b}", OPERATIONS, "operation") for a, b in EDGES))
        working = range(SKIP + 1, len(OPERATIONS))
        self._ways = {way: n for n, way in enumerate(w for k in range(4) for w in product(working, repeat=k))}

    def features(self, codes: Codes) -> Features:
        """How often each sequence of operations lies on a way from input to output (White et al., 2021, section 4.1:
        path encoding), skips left out; a way over ``none`` is none."""
        found = np.zeros((len(codes), len(self._ways)))
        for row, cell in zip(found, codes.tolist(), strict=True):
            for way in _ways(tuple(cell)):
                row[self._ways[way]] += 1
        return found

    @property
    def graph_operations(self) -> int:
        return len(OPERATIONS) + 2

    def graph(self, architecture: Architecture) -> Graph:
        """Input, edges' operations, output; an operation feeds those on the edges that leave its edge's end. What is on
        no way from input to output feeds nothing."""
        on_ways = {edge for path in PATHS if NONE not in (architecture[e] for e in path) for edge in path}
        feeds = np.zeros((len(EDGES) + 2, len(EDGES) + 2), dtype=bool)
        for n, (start, end) in enumerate(EDGES):
            if n in on_ways:
                feeds[0, n + 1] = start == 0
                feeds[n + 1, -1] = end == 3
                for other, (after, _) in enumerate(EDGES):
                    feeds[n + 1, other + 1] = after == end and other in on_ways
        return feeds, np.array([len(OPERATIONS), *architecture, len(OPERATIONS) + 1])

    def diagrams(self, architecture: Architecture) -> list[Diagram]:
        return [diagram("cell", self.graph(architecture), (*OPERATIONS, "input", "output"))]

    def model(self, architecture: Architecture) -> dict[str, Any]:
        edges = [f"{OPERATIONS[o]}~{start}" for (start, _), o in zip(EDGES, architecture, strict=True)]
        nodes = "+".join("|" + "|".join(node) + "|" for node in (edges[:1], edges[1:3], edges[3:]))
        return {"name": "nasbench201", "args": {"cell": nodes, **self.size}}

    def key(self, architecture: Architecture) -> Hashable:
        return _computed(architecture)


@lru_cache(maxsize=1 << 16)
def _ways(cell: Architecture) -> tuple[tuple[int, ...], ...]:
    found = []
    for path in PATHS:
        operations = [cell[edge] for edge in path]
        if NONE not in operations:
            found.append(tuple(operation for operation in operations if operation != SKIP))
    return tuple(found)


@lru_cache(maxsize=1 << 16)
def _computed(cell: Architecture) -> tuple[object, ...]:
    """What the output is the sum of, as terms (operation, terms that it is applied to); and all operations, since two
    with the same inputs are not one that is used twice."""
    sums: list[tuple[object, ...]] = [("input",), (), (), ()]
    operations: list[object] = []
    for node in (1, 2, 3):
        terms: list[object] = []
        for (start, end), operation in zip(EDGES, cell, strict=True):
            if end != node or operation == NONE or not sums[start]:
                continue
            if operation == SKIP:
                terms += sums[start]
            else:
                terms.append((operation, sums[start]))
                operations.append(terms[-1])
        sums[node] = tuple(sorted(terms, key=repr))
    used = repr(sums[3])
    return sums[3], tuple(sorted((one for one in operations if repr(one) in used), key=repr))
