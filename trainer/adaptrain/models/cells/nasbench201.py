"""The network of NAS-Bench-201 (Dong and Yang, 2020, section 2.1), normalized by groups."""

from collections.abc import Callable

import torch
from torch import nn

from adaptrain.config.arguments import positive
from adaptrain.models.arguments import channels, floating
from adaptrain.models.cells.genotypes import Nodes, Sums, live, parse
from adaptrain.models.cells.operations import Norm, average_pool, convolution, group_norm, head

OPERATIONS: dict[str, Callable[[int, Norm], nn.Module]] = {
    "skip_connect": lambda width, norm: nn.Identity(),
    "nor_conv_1x1": lambda width, norm: convolution(width, width, 1, norm=norm),
    "nor_conv_3x3": lambda width, norm: convolution(width, width, 3, norm=norm),
    "avg_pool_3x3": lambda width, norm: average_pool(),
}
STAGES = 3


class Cell(nn.Module):
    """The last of four nodes, of which the first is the input."""

    def __init__(self, nodes: Nodes, width: int) -> None:
        super().__init__()
        self.sums = Sums(live(nodes, inputs=1), lambda operation, start: OPERATIONS[operation](width, group_norm))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.sums(x)[-1]  # type: ignore[no-any-return]


class Halving(nn.Module):
    """A residual block between stages: half the size, twice the width."""

    def __init__(self, before: int, norm: Norm = group_norm) -> None:
        super().__init__()
        after = 2 * before
        self.convolutions = nn.Sequential(
            *convolution(before, after, 3, stride=2, norm=norm), *convolution(after, after, 3, norm=norm)
        )
        self.shortcut = nn.Sequential(nn.AvgPool2d(2, 2, ceil_mode=True), nn.Conv2d(before, after, 1, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convolutions(x) + self.shortcut(x)  # type: ignore[no-any-return]


def nasbench201(
    shape: tuple[int, ...], classes: int, cell: str, cells: int = 5, width: int = 16, dtype: str = "float32"
) -> nn.Module:
    """Images [n, channels, height, width] to logits [n, classes], in three stages of doubling width.

    Args:
        cell: as the benchmark writes it: ``|nor_conv_3x3~0|+|none~0|skip_connect~1|+|…~0|…~1|…~2|``.
        cells: how many in each stage.
        width: channels of the first stage.
        dtype: float32 or float64.
    """
    cells, width = positive("cells", cells), positive("width", width)
    nodes = parse("cell", cell, ("none", *OPERATIONS), inputs=1)
    if [[start for _, start in node] for node in nodes] != [[0], [0, 1], [0, 1, 2]]:
        raise ValueError(
            f"cell must have the edges |~0|+|~0|~1|+|~0|~1|~2| (none for one that isn't there), not {cell!r}"
        )
    return skeleton("nasbench201", shape, classes, lambda w: Cell(nodes, w), cells, width).to(floating(dtype))


def skeleton(
    name: str,
    shape: tuple[int, ...],
    classes: int,
    cell: Callable[[int], nn.Module],
    cells: int,
    width: int,
    norm: Norm = group_norm,
) -> nn.Sequential:
    """What is around the cells, each of which is made for a number of channels."""
    layers: list[nn.Module] = [nn.Conv2d(channels(name, shape), width, 3, padding=1, bias=False), norm(width)]
    for stage in range(STAGES):
        if stage > 0:
            layers.append(Halving(width << (stage - 1), norm))
        layers += [cell(width << stage) for _ in range(cells)]
    last = width << (STAGES - 1)
    return nn.Sequential(*layers, norm(last), nn.ReLU(), head(last, classes))
