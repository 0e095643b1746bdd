"""Networks of two kinds of cells, each fed by the two before it (Zoph et al., 2018, figure 2; Liu et al., 2019)."""

from collections.abc import Callable

import torch
from torch import nn

from adaptrain.models.arguments import channels
from adaptrain.models.cells.operations import Norm, Reduce, convolution, group_norm, head

STEM = 3
"""Times the first cells' width, as in both papers' code."""


class Cell(nn.Module):
    """Brings both inputs to its width and to one size, and joins some of its nodes.

    Args:
        before: channels of the two inputs, the older one first.
        nodes: both inputs → all nodes.
        joined: those that are its output.
        halve: the older input is of twice the size.
    """

    def __init__(
        self, before: tuple[int, int], width: int, nodes: nn.Module, joined: list[int], halve: bool, norm: Norm
    ) -> None:
        super().__init__()
        self.older = Reduce(before[0], width, norm) if halve else convolution(before[0], width, 1, norm=norm)
        self.newer = convolution(before[1], width, 1, norm=norm)
        self.nodes = nodes
        self._joined = joined

    def forward(self, older: torch.Tensor, newer: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        nodes = self.nodes(self.older(older), self.newer(newer), *weights)
        return torch.cat([nodes[n] for n in self._joined], 1)


class Stack(nn.Module):
    """Images [n, channels, h, w] to logits [n, classes]. A third and two thirds of the way, cells reduce: half the size
    and twice the width.

    Args:
        make: whether a cell reduces, and its width → its nodes, and which of them are joined.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        classes: int,
        cells: int,
        width: int,
        make: Callable[[bool, int], tuple[nn.Module, list[int]]],
        norm: Norm = group_norm,
    ) -> None:
        super().__init__()
        if cells < 3:
            raise ValueError(f"cells must be an integer of at least 3, since two of them reduce, not {cells}")
        self.stem = nn.Sequential(
            nn.Conv2d(channels(name, shape), STEM * width, 3, padding=1, bias=False), norm(STEM * width)
        )
        before, halve = (STEM * width, STEM * width), False
        self.cells = nn.ModuleList()
        self.reduces = [place in (cells // 3, 2 * cells // 3) for place in range(cells)]
        for reduce in self.reduces:
            width *= 2 if reduce else 1
            nodes, joined = make(reduce, width)
            self.cells.append(Cell(before, width, nodes, joined, halve, norm))
            before, halve = (before[1], len(joined) * width), reduce
        self.head = head(before[1], classes)

    def forward(self, x: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """``weights`` [2, …] go to the nodes of the cells: the first to those that keep the size, the second to those
        that reduce."""
        older = newer = self.stem(x)
        for cell, reduces in zip(self.cells, self.reduces, strict=True):
            own = () if weights is None else (weights[int(reduces)],)
            older, newer = newer, cell(older, newer, *own)
        return self.head(newer)  # type: ignore[no-any-return]
