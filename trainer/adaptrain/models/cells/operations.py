"""What lies on the edges of cells: [n, before, h, w] → [n, after, h/stride, w/stride], rounded up.

``norm`` makes the normalization of a number of channels. A group's, never a batch's, in what elastic workers train.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

Norm = Callable[[int], nn.Module]
Kernel = int | tuple[int, int]


def group_norm(channels: int) -> nn.Module:
    """Up to 4 groups of at least two channels: one alone would be all zeros where an image is one pixel."""
    return nn.GroupNorm(math.gcd(4, channels // 2) if channels % 2 == 0 else 1, channels)


def convolution(
    before: int, after: int, kernel: Kernel, stride: int = 1, norm: Norm = group_norm, dilation: int = 1
) -> nn.Sequential:
    """ReLU, convolution, normalization."""
    layer = nn.Conv2d(before, after, kernel, stride, _same(kernel, dilation), dilation, bias=False)
    return nn.Sequential(nn.ReLU(), layer, norm(after))


def separable(
    before: int, after: int, kernel: int, stride: int = 1, norm: Norm = group_norm, dilation: int = 1
) -> nn.Sequential:
    """ReLU, a convolution of each channel, one across channels, normalization (Chollet, 2017)."""
    padding = _same(kernel, dilation)
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(before, before, kernel, stride, padding, dilation, groups=before, bias=False),
        nn.Conv2d(before, after, 1, bias=False),
        norm(after),
    )


def twice_separable(channels: int, kernel: int, stride: int = 1, norm: Norm = group_norm) -> nn.Sequential:
    """As in NASNet and DARTS: the second one without stride."""
    first, second = (separable(channels, channels, kernel, s, norm) for s in (stride, 1))
    return nn.Sequential(*first, *second)


def crossed(channels: int, length: int, stride: int = 1, norm: Norm = group_norm) -> nn.Sequential:
    """1 × length, then length × 1."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(channels, channels, (1, length), (1, stride), (0, length // 2), bias=False),
        nn.Conv2d(channels, channels, (length, 1), (stride, 1), (length // 2, 0), bias=False),
        norm(channels),
    )


def average_pool(stride: int = 1) -> nn.Module:
    return nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)


def max_pool(kernel: int, stride: int = 1) -> nn.Module:
    return nn.MaxPool2d(kernel, stride, padding=kernel // 2)


def identity(channels: int, stride: int = 1, norm: Norm = group_norm) -> nn.Module:
    """The input itself; with a stride, what ``Reduce`` leaves of it."""
    return nn.Identity() if stride == 1 else Reduce(channels, channels, norm)


class Reduce(nn.Module):
    """Half the size: two 1 × 1 convolutions side by side, the second of them shifted by a pixel (DARTS's code)."""

    def __init__(self, before: int, after: int, norm: Norm = group_norm) -> None:
        super().__init__()
        self.even = nn.Conv2d(before, after // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(before, after - after // 2, 1, stride=2, bias=False)
        self.norm = norm(after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(x)
        shifted = F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        return self.norm(torch.cat([self.even(x), self.odd(shifted)], 1))  # type: ignore[no-any-return]


def head(before: int, classes: int) -> nn.Sequential:
    """Mean over the pixels, and logits."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


def _same(kernel: Kernel, dilation: int) -> int | tuple[int, int]:
    if isinstance(kernel, int):
        return dilation * (kernel // 2)
    return dilation * (kernel[0] // 2), dilation * (kernel[1] // 2)
