"""Networks of NASNet cells (Zoph et al., 2018, section 3), normalized by groups."""

from collections.abc import Callable

from torch import nn

from adaptrain.config.arguments import positive
from adaptrain.models.arguments import floating
from adaptrain.models.cells.genotypes import Sums, parse
from adaptrain.models.cells.operations import average_pool, convolution, crossed, identity, max_pool, twice_separable
from adaptrain.models.cells.stack import Stack

OPERATIONS: dict[str, Callable[[int, int], nn.Module]] = {
    "identity": identity,
    "conv_1x3_3x1": lambda width, stride: crossed(width, 3, stride),
    "conv_1x7_7x1": lambda width, stride: crossed(width, 7, stride),
    "dil_conv_3x3": lambda width, stride: convolution(width, width, 3, stride, dilation=2),
    "avg_pool_3x3": lambda width, stride: average_pool(stride),
    "max_pool_3x3": lambda width, stride: max_pool(3, stride),
    "max_pool_5x5": lambda width, stride: max_pool(5, stride),
    "max_pool_7x7": lambda width, stride: max_pool(7, stride),
    "conv_1x1": lambda width, stride: convolution(width, width, 1, stride),
    "conv_3x3": lambda width, stride: convolution(width, width, 3, stride),
    "sep_conv_3x3": lambda width, stride: twice_separable(width, 3, stride),
    "sep_conv_5x5": lambda width, stride: twice_separable(width, 5, stride),
    "sep_conv_7x7": lambda width, stride: twice_separable(width, 7, stride),
}


def nasnet(
    shape: tuple[int, ...],
    classes: int,
    normal: str,
    reduce: str,
    cells: int = 8,
    width: int = 16,
    dtype: str = "float32",
) -> nn.Module:
    """Images [n, channels, height, width] to logits [n, classes]. A cell's output is its nodes that feed no other one;
    as in the paper's code, an input that feeds none is among them.

    Args:
        normal: blocks of the cells that keep the size: ``|sep_conv_3x3~0|identity~1|+|…~0|…~2|+…``, where 0 and 1 are
            the cells before.
        reduce: blocks of the two cells that halve it.
        cells: at least 3.
        width: channels of the first cell.
        dtype: float32 or float64.
    """
    parsed = [parse(name, text, OPERATIONS, inputs=2) for name, text in (("normal", normal), ("reduce", reduce))]

    def make(reduces: bool, wide: int) -> tuple[nn.Module, list[int]]:
        feeding = {start for node in parsed[reduces] for _, start in node}
        nodes = parsed[reduces] + [[("identity", start)] for start in (0, 1) if start not in feeding]
        sums = Sums(nodes, lambda operation, start: OPERATIONS[operation](wide, 2 if reduces and start < 2 else 1))
        return sums, [n for n in range(2, 2 + len(nodes)) if n not in feeding]

    stack = Stack("nasnet", shape, classes, positive("cells", cells), positive("width", width), make)
    return stack.to(floating(dtype))
