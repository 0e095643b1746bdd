"""A chain of convolutions, normalized by groups (Wu and He, 2018)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from adaptrain.config.arguments import flag, layers_of, odd, positive
from adaptrain.models.arguments import channels, floating
from adaptrain.models.cells.operations import group_norm, head

FIELDS = {"width": (positive, 32), "kernel": (odd, 3), "stride": (positive, 1), "skip": (flag, False)}


class Layer(nn.Module):
    """Convolution, normalization, with a skip the input too (He et al., 2016, equation 2: by a 1 × 1 convolution where
    the shape is another), ReLU."""

    def __init__(self, before: int, width: int, kernel: int, stride: int, skip: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(before, width, kernel, stride, kernel // 2, bias=False)
        self.norm = group_norm(width)
        self.skip: nn.Module | None = None
        if skip:
            same = before == width and stride == 1
            self.skip = nn.Identity() if same else nn.Conv2d(before, width, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.convolution(x))
        return F.relu(y if self.skip is None else y + self.skip(x))


def cnn(shape: tuple[int, ...], classes: int, layers: list[dict[str, Any]], dtype: str = "float32") -> nn.Module:
    """Images [n, channels, height, width] to logits [n, classes].

    Args:
        layers: of each its ``width`` (channels, 32), ``kernel`` (size, 3) and ``stride`` (1), and whether it has a
            ``skip`` connection (false).
        dtype: float32 or float64.
    """
    before, chain = channels("cnn", shape), []
    for layer in layers_of(layers, FIELDS):
        chain.append(Layer(before, **layer))
        before = layer["width"]
    return nn.Sequential(*chain, head(before, classes)).to(floating(dtype))
