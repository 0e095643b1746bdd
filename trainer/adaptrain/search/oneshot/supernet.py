"""Networks that hold every cell of a space: on each edge all operations, weighted.

They are normalized over the batch, without weights and without running averages (Liu et al., 2019, appendix A.1.1),
also where they are evaluated: they live in one process, and no cell's statistics get into another one's.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from adaptrain.models.cells.darts import OPERATIONS as DARTS_OPERATIONS
from adaptrain.models.cells.nasbench201 import OPERATIONS as NASBENCH201_OPERATIONS
from adaptrain.models.cells.nasbench201 import skeleton
from adaptrain.models.cells.operations import identity
from adaptrain.models.cells.stack import Stack
from adaptrain.search.algorithms.oneshot import CellSpace
from adaptrain.search.spaces.base import Architecture
from adaptrain.search.spaces.cells import INPUTS, Darts
from adaptrain.search.spaces.nasbench201 import EDGES, OPERATIONS, NasBench201

NONE, SKIP = "none", "skip_connect"


def batch_norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, affine=False, track_running_stats=False)


class Mixed(nn.Module):
    """All operations of an edge; those that have no weights themselves are normalized too (DARTS's code).

    Args:
        auxiliary: a skip connection beside them (see ``darts``).
    """

    def __init__(self, width: int, operations: Sequence[nn.Module | None], auxiliary: nn.Module) -> None:
        super().__init__()
        self.operations = nn.ModuleList(
            one if list(one.parameters()) else nn.Sequential(one, batch_norm(width))
            for one in (one or nn.Identity() for one in operations)
        )
        self._none = [one is None for one in operations]
        self.auxiliary = auxiliary

    def forward(self, x: torch.Tensor, weights: torch.Tensor, beta: float) -> list[torch.Tensor]:
        """What each operation adds that is not ``none`` and whose of the ``weights`` [operations] is not 0."""
        terms = [
            weights[n] * operation(x)
            for n, operation in enumerate(self.operations)
            if not self._none[n] and float(weights[n].detach()) != 0
        ]
        return [*terms, beta * self.auxiliary(x)] if beta else terms


class MixedSums(nn.Module):
    """All nodes of a cell, from its inputs, which come first among them.

    Args:
        edges: from node to node.
        make: where an edge starts → it.
    """

    def __init__(self, edges: Sequence[tuple[int, int]], make: Callable[[int], Mixed]) -> None:
        super().__init__()
        self._ends = edges
        self.edges = nn.ModuleList(make(start) for start, _ in edges)
        self.beta = 0.0

    def forward(self, *inputs_and_weights: torch.Tensor) -> list[torch.Tensor]:
        """The inputs, and at last the weights [edges, operations]."""
        *inputs, weights = inputs_and_weights
        found = list(inputs)
        for node in range(len(inputs), 1 + max(end for _, end in self._ends)):
            terms: list[torch.Tensor] = []
            for n, (start, end) in enumerate(self._ends):
                if end == node:
                    terms += self.edges[n](found[start], weights[n], self.beta)
            found.append(torch.stack(terms).sum(0) if terms else 0 * inputs[0])
        return found


class Supernet(nn.Module):
    """One for each space. ``weights`` are of [kinds of cells, edges, operations]."""

    shape: tuple[int, int, int]
    """Of the weights."""
    operations: tuple[str, ...]

    def forward(self, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Images [n, channels, h, w] → logits [n, classes]."""
        raise NotImplementedError

    def weights(self, architecture: Architecture) -> torch.Tensor:
        """1 for the operations of an architecture, 0 for all others."""
        raise NotImplementedError

    def derive(self, scores: torch.Tensor) -> Architecture:
        """The architecture of the best operations by ``scores`` [kinds of cells, edges, operations]."""
        raise NotImplementedError

    def set_auxiliary(self, beta: float) -> None:
        """How much the auxiliary skip connections count."""
        for module in self.modules():
            if isinstance(module, MixedSums):
                module.beta = beta


class NasBench201Supernet(Supernet):
    """Of as many cells and as wide as the space's models."""

    def __init__(self, space: NasBench201, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.shape, self.operations = (1, len(EDGES), len(OPERATIONS)), OPERATIONS

        def make(width: int) -> nn.Module:
            def edge(start: int) -> Mixed:
                makers = [NASBENCH201_OPERATIONS.get(operation) for operation in OPERATIONS]
                each = [None if maker is None else maker(width, batch_norm) for maker in makers]
                return Mixed(width, each, nn.Identity())

            return MixedSums(EDGES, edge)

        self.layers = skeleton("nasbench201", shape, classes, make, norm=batch_norm, **space.size)

    def forward(self, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        weights = weights.to(x.device)
        for layer in self.layers:
            x = layer(x, weights[0])[-1] if isinstance(layer, MixedSums) else layer(x)
        return x

    def weights(self, architecture: Architecture) -> torch.Tensor:
        return nn.functional.one_hot(torch.tensor([architecture]), len(OPERATIONS)).float()

    def derive(self, scores: torch.Tensor) -> Architecture:
        return tuple(scores[0].argmax(1).tolist())


class DartsSupernet(Supernet):
    """Of as many cells and as wide as the space's models."""

    def __init__(self, space: Darts, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self._space = space
        self.operations = (*space.operations, NONE)
        self.edges = [(start, end) for end in range(INPUTS, INPUTS + space.nodes) for start in range(end)]
        self.shape = (2, len(self.edges), len(self.operations))

        def make(reduces: bool, width: int) -> tuple[nn.Module, list[int]]:
            def edge(start: int) -> Mixed:
                stride = 2 if reduces and start < INPUTS else 1
                each = [DARTS_OPERATIONS[one](width, stride, batch_norm) for one in space.operations]
                return Mixed(width, [*each, None], identity(width, stride, batch_norm))

            return MixedSums(self.edges, edge), list(range(INPUTS, INPUTS + space.nodes))

        self.stack = Stack("darts", shape, classes, make=make, norm=batch_norm, **space.size)

    def forward(self, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return self.stack(x, weights.to(x.device))  # type: ignore[no-any-return]

    def weights(self, architecture: Architecture) -> torch.Tensor:
        found = torch.zeros(self.shape)
        for kind, cell in enumerate(self._space.cells(architecture)):
            for end, node in enumerate(cell, INPUTS):
                for operation, start in node:
                    found[kind, self.edges.index((start, end)), self.operations.index(operation)] = 1
        return found

    def derive(self, scores: torch.Tensor) -> Architecture:
        """Of each node the two edges with the best operations but ``none`` (section 2.4)."""
        best, operations = scores[..., :-1].max(2)
        cells = []
        for kind in range(2):
            cell = []
            for end in range(INPUTS, INPUTS + self._space.nodes):
                numbers = [n for n, edge in enumerate(self.edges) if edge[1] == end]
                one, other = sorted(numbers, key=lambda n: float(best[kind, n]), reverse=True)[:2]
                pairs = [(self.operations[int(operations[kind, n])], self.edges[n][0]) for n in (one, other)]
                cell.append((pairs[0], pairs[1]))
            cells.append(cell)
        return self._space.encode(cells)


def supernet(space: CellSpace, shape: tuple[int, ...], classes: int) -> Supernet:
    """With initial weights from torch's global random state."""
    if isinstance(space, Darts):
        return DartsSupernet(space, shape, classes)
    return NasBench201Supernet(space, shape, classes)
