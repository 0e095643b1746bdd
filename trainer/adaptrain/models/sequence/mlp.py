"""A multilayer perceptron."""

import math

from torch import nn

from adaptrain.config.arguments import one_of, positive
from adaptrain.models.arguments import floating

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


def mlp(
    shape: tuple[int, ...],
    classes: int,
    width: int = 128,
    depth: int = 2,
    widths: list[int] | None = None,
    activation: str = "relu",
    dtype: str = "float32",
) -> nn.Module:
    """Fully connected layers over the flattened input [n, *shape]; returns logits [n, classes].

    Args:
        width: units in each hidden layer.
        depth: hidden layers.
        widths: units in the first, second, … hidden layer, in place of width and depth.
        activation: relu, gelu, silu or tanh.
        dtype: float32 or float64.
    """
    if widths is None:
        widths = [positive("width", width)] * positive("depth", depth)
    elif not isinstance(widths, list) or not widths:
        raise ValueError(f"widths must be a list with at least one layer's units, not {widths!r}")
    between = ACTIVATIONS[one_of("activation", activation, ACTIVATIONS)]
    layers: list[nn.Module] = [nn.Flatten()]
    size = math.prod(shape)
    for n, units in enumerate(widths):
        layers += [nn.Linear(size, positive(f"widths[{n}]", units)), between()]
        size = int(units)
    return nn.Sequential(*layers, nn.Linear(size, classes)).to(floating(dtype))
