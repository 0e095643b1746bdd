"""A Transformer encoder (Vaswani et al., 2017), normalized first (Xiong et al., 2020), over an image's patches
(Dosovitskiy et al., 2021) or a sequence."""

from typing import Any

import torch
from torch import nn

from adaptrain.config.arguments import layers_of, positive
from adaptrain.models.arguments import floating

FIELDS = {"heads": (positive, 4), "feed_forward": (positive, 128)}


class Layer(nn.Module):
    """Attention and feed-forward, each beside its input: [n, length, width] → the same."""

    def __init__(self, width: int, heads: int, feed_forward: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, feed_forward), nn.GELU(), nn.Linear(feed_forward, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.merge(self._attend(self.norm1(x)))
        return x + self.feed_forward(self.norm2(x))  # type: ignore[no-any-return]

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        """Equation 1 in each head."""
        n, length, width = x.shape
        q, k, v = self.project(x).view(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(2, 3) * (width // self.heads) ** -0.5).softmax(3)
        return (weights @ v).transpose(1, 2).reshape(n, length, width)  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Tokens with learned positions, layers, the mean over the tokens, logits."""

    def __init__(self, tokens: nn.Module, length: int, width: int, layers: list[nn.Module], classes: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.layers = nn.Sequential(*layers, nn.LayerNorm(width))
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.tokens(x) + self.positions).mean(1))  # type: ignore[no-any-return]


class Patches(nn.Conv2d):
    """[n, channels, h, w] → [n, patches, width]."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__(channels, width, patch, patch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).flatten(2).transpose(1, 2)


def transformer(
    shape: tuple[int, ...],
    classes: int,
    layers: list[dict[str, Any]],
    width: int = 64,
    patch: int = 2,
    dtype: str = "float32",
) -> nn.Module:
    """Images [n, channels, height, width] or sequences [n, length, features] to logits [n, classes].

    Args:
        layers: of each its ``heads`` (4), which divide the width, and the units of its ``feed_forward`` part (128).
        width: numbers in a token.
        patch: an image is cut into squares of so many pixels a side; sequences have none.
        dtype: float32 or float64.
    """
    width, patch, chain = positive("width", width), positive("patch", patch), layers_of(layers, FIELDS)
    for n, layer in enumerate(chain):
        if width % layer["heads"]:
            raise ValueError(f"layers[{n}].heads must divide the width {width}, as {layer['heads']} does not")
    tokens: nn.Module
    if len(shape) == 2:
        length, tokens = shape[0], nn.Linear(shape[1], width)
    elif len(shape) == 3:
        if shape[1] % patch or shape[2] % patch:
            raise ValueError(f"patch must divide the images' sides {shape[1]} and {shape[2]}, as {patch} does not")
        length, tokens = shape[1] // patch * (shape[2] // patch), Patches(shape[0], width, patch)
    else:
        raise ValueError(f"transformer needs images or sequences, the data set's inputs have {len(shape)} dimensions")
    stack: list[nn.Module] = [Layer(width, **layer) for layer in chain]
    return Encoder(tokens, length, width, stack, classes).to(floating(dtype))
