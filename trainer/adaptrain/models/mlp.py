"""A multilayer perceptron."""

import math

from torch import nn

from adaptrain.arguments import positive
from adaptrain.models.arguments import floating


def mlp(shape: tuple[int, ...], classes: int, width: int = 128, depth: int = 2, dtype: str = "float32") -> nn.Module:
    """Fully connected layers over the flattened input [n, *shape]; returns logits [n, classes].

    Args:
        width: units in each hidden layer.
        depth: hidden layers.
        dtype: float32 or float64.
    """
    width, depth = positive("width", width), positive("depth", depth)
    layers: list[nn.Module] = [nn.Flatten()]
    size = math.prod(shape)
    for _ in range(depth):
        layers += [nn.Linear(size, width), nn.ReLU()]
        size = width
    return nn.Sequential(*layers, nn.Linear(size, classes)).to(floating(dtype))
