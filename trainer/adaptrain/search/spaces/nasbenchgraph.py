"""The cell of NAS-Bench-Graph (Qin et al., 2022): four layers of a graph neural network, each fed by one before it."""

from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from adaptrain.config.arguments import positive
from adaptrain.search.spaces.base import Architecture, Codes, Diagram, Dimension, Features, Graph, Space, diagram

LAYERS = ("gat", "gcn", "gin", "cheb", "sage", "arma", "graph", "fc", "skip")
SKIP = LAYERS.index("skip")
KINDS = len(LAYERS)
STRUCTURES = (
    *((0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 1, 1), (0, 0, 1, 2), (0, 0, 1, 3)),
    *((0, 1, 1, 1), (0, 1, 1, 2), (0, 1, 2, 2), (0, 1, 2, 3)),
)
"""Which one feeds each layer: 0 is the input, 1 the first layer. What feeds no layer is the output."""
FEATURES = (4 * KINDS, KINDS * KINDS, KINDS, KINDS, 3 * 4)
"""Numbers of features in each group."""


class NasBenchGraph(Space):
    """9 structures of 9^4 layers.

    Args:
        width: features of a node in each layer of the model, a multiple of 4.
        edges: of the graph that every sample is (see the model); absent: samples are images.
    """

    def __init__(self, width: int = 32, edges: Sequence[Sequence[int]] | None = None) -> None:
        if positive("width", width) % 4:
            raise ValueError(f"width must be a multiple of 4, the heads of attention, not {width}")
        self._args: dict[str, Any] = {"width": int(width)} | ({} if edges is None else {"edges": edges})
        super().__init__(
            (
                Dimension("structure", tuple("".join(map(str, one)) for one in STRUCTURES), "structure"),
                *(Dimension(f"layer{n}", LAYERS, "layer") for n in range(1, 5)),
            )
        )

    def is_valid(self, architecture: Architecture) -> bool:
        return any(layer != SKIP for layer in architecture[1:])

    def model(self, architecture: Architecture) -> dict[str, Any]:
        structure = "".join(map(str, STRUCTURES[architecture[0]]))
        layers = [LAYERS[layer] for layer in architecture[1:]]
        return {"name": "nasbenchgraph", "args": {"structure": structure, "layers": layers, **self._args}}

    def key(self, architecture: Architecture) -> Hashable:
        return _tree(architecture)

    @property
    def graph_operations(self) -> int:
        return len(LAYERS) + 2

    def graph(self, architecture: Architecture) -> Graph:
        """Input, layers, output."""
        structure, layers = STRUCTURES[architecture[0]], architecture[1:]
        feeds = np.zeros((6, 6), dtype=bool)
        for n, start in enumerate(structure, 1):
            feeds[start, n] = True
            feeds[n, 5] = n not in structure
        return feeds, np.array([len(LAYERS), *layers, len(LAYERS) + 1])

    def diagrams(self, architecture: Architecture) -> list[Diagram]:
        return [diagram("layers", self.graph(architecture), (*LAYERS, "input", "output"))]

    @property
    def feature_groups(self) -> tuple[int, ...]:
        return FEATURES

    def features(self, codes: Codes) -> Features:
        """How often each layer lies at each depth, follows each other one, is the output, and is there at all; how many
        layers lie at each depth, are the output there, and feed none, one, two or more. Skips are left out."""
        width = sum(FEATURES)
        places = [n * width + place for n, one in enumerate(codes.tolist()) for place in _features(tuple(one))]
        return np.bincount(places, minlength=len(codes) * width).reshape(-1, width).astype(float)


@lru_cache(maxsize=1 << 16)
def _features(architecture: Architecture) -> tuple[int, ...]:
    """The features that are there, as often as they are."""
    structure, layers = STRUCTURES[architecture[0]], architecture[1:]
    stands_for = [0]
    for n, (start, layer) in enumerate(zip(structure, layers, strict=True), 1):
        stands_for.append(stands_for[start] if layer == SKIP else n)
    outputs = [stands_for[n] for n in range(1, 5) if n not in structure]
    fed_by = {n: stands_for[start] for n, start in enumerate(structure, 1) if layers[n - 1] != SKIP}
    feeds, depths = list(fed_by.values()), {0: -1}
    at_depth, after, output, there, shape = np.cumsum((0, *FEATURES[:-1])).tolist()
    found: list[int] = []
    for n, before in fed_by.items():
        layer, depth = layers[n - 1], depths[before] + 1
        depths[n] = depth
        found += [at_depth + depth * KINDS + layer, there + layer, shape + depth, shape + 8 + min(feeds.count(n), 3)]
        found.append(after + (layers[before - 1] if before else SKIP) * KINDS + layer)
        found += [output + layer, shape + 4 + depth] * outputs.count(n)
    return tuple(found)


@lru_cache(maxsize=1 << 16)
def _tree(architecture: Architecture) -> tuple[object, ...]:
    """The tree of layers without skips: of each, how often it is the output, and what it feeds, in order. As in the
    benchmark, skips that lead from the input to the output count for nothing beside other layers."""
    structure, layers = STRUCTURES[architecture[0]], architecture[1:]
    stands_for, outputs = [0], {0: 0}
    fed: dict[int, list[tuple[int, int]]] = {0: []}
    for n, (start, layer) in enumerate(zip(structure, layers, strict=True), 1):
        if layer == SKIP:
            stands_for.append(stands_for[start])
            continue
        stands_for.append(n)
        fed[n], outputs[n] = [], 0
        fed[stands_for[start]].append((layer, n))
    for n in range(1, 5):
        if n not in structure:
            outputs[stands_for[n]] += 1

    def below(n: int) -> tuple[object, ...]:
        return n and outputs[n], tuple(sorted(((layer, below(child)) for layer, child in fed[n]), key=repr))

    return below(0)
