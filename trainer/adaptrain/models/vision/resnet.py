"""Residual networks for small images (He et al., 2016, section 4.2) with group normalization (Wu and He, 2018).

Batch normalization would make the result depend on how a batch is split among workers.
"""

import torch
import torch.nn.functional as F
from torch import nn

from adaptrain.config.arguments import positive
from adaptrain.models.arguments import channels, floating


class Block(nn.Module):
    """Two 3 × 3 convolutions and a shortcut: [n, before, h, w] → [n, after, h/stride, w/stride]."""

    def __init__(self, before: int, after: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(groups, after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, after)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.GroupNorm(groups, after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


def resnet(
    shape: tuple[int, ...], classes: int, depth: int = 8, width: int = 16, groups: int = 4, dtype: str = "float32"
) -> nn.Module:
    """Images [n, channels, height, width] to logits [n, classes], in three stages of doubling width.

    Args:
        depth: layers with weights, 6n + 2.
        width: channels of the first stage.
        groups: normalization groups; divides width.
        dtype: float32 or float64.
    """
    depth, width, groups = positive("depth", depth), positive("width", width), positive("groups", groups)
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth must be 6n + 2 (8, 14, 20, …), not {depth}")
    if width % groups:
        raise ValueError(f"width {width} must be a multiple of groups {groups}")
    layers: list[nn.Module] = [
        nn.Conv2d(channels("resnet", shape), width, 3, padding=1, bias=False),
        nn.GroupNorm(groups, width),
        nn.ReLU(),
    ]
    before = width
    for stage in range(3):
        after = width << stage
        for block in range((depth - 2) // 6):
            layers.append(Block(before, after, 2 if stage > 0 and block == 0 else 1, groups))
            before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes)).to(floating(dtype))
