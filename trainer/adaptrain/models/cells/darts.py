"""The network of DARTS (Liu et al., 2019, appendix A.1.1), normalized by groups."""

from collections.abc import Callable

from torch import nn

from adaptrain.config.arguments import positive
from adaptrain.models.arguments import floating
from adaptrain.models.cells.genotypes import Sums, parse
from adaptrain.models.cells.operations import (
    Norm,
    average_pool,
    group_norm,
    identity,
    max_pool,
    separable,
    twice_separable,
)
from adaptrain.models.cells.stack import Stack

Operation = Callable[[int, int, Norm], nn.Module]
OPERATIONS: dict[str, Operation] = {
    "max_pool_3x3": lambda width, stride, norm: max_pool(3, stride),
    "avg_pool_3x3": lambda width, stride, norm: average_pool(stride),
    "skip_connect": identity,
    "sep_conv_3x3": lambda width, stride, norm: twice_separable(width, 3, stride, norm),
    "sep_conv_5x5": lambda width, stride, norm: twice_separable(width, 5, stride, norm),
    "dil_conv_3x3": lambda width, stride, norm: separable(width, width, 3, stride, norm, dilation=2),
    "dil_conv_5x5": lambda width, stride, norm: separable(width, width, 5, stride, norm, dilation=2),
}


def darts(
    shape: tuple[int, ...],
    classes: int,
    normal: str,
    reduce: str,
    cells: int = 8,
    width: int = 16,
    dtype: str = "float32",
) -> nn.Module:
    """Images [n, channels, height, width] to logits [n, classes]. A cell's output is all of its nodes.

    Args:
        normal: nodes of the cells that keep the size: ``|sep_conv_3x3~0|skip_connect~1|+|…~0|…~2|+…``; 0 and 1 are the
            cells before.
        reduce: nodes of the two cells that halve it.
        cells: at least 3.
        width: channels of the first cell.
        dtype: float32 or float64.
    """
    parsed = [parse(name, text, OPERATIONS, inputs=2) for name, text in (("normal", normal), ("reduce", reduce))]

    def make(reduces: bool, wide: int) -> tuple[nn.Module, list[int]]:
        def edge(operation: str, start: int) -> nn.Module:
            return OPERATIONS[operation](wide, 2 if reduces and start < 2 else 1, group_norm)

        nodes = parsed[reduces]
        return Sums(nodes, edge), list(range(2, 2 + len(nodes)))

    stack = Stack("darts", shape, classes, positive("cells", cells), positive("width", width), make)
    return stack.to(floating(dtype))
