"""Chains of layers, of which the first ``depth`` are there. What is chosen for the others counts for nothing."""

from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from adaptrain.config.arguments import ascending, flag, odd, one_of, positive, several
from adaptrain.search.spaces.base import Architecture, Codes, Diagram, Dimension, Features, Space

ACTIVATIONS = ("relu", "gelu", "silu", "tanh")
CLASSES = 10
"""As many as there are where the number of weights is estimated."""


class Chain(Space):
    """Dimensions of the whole, the first of which is the depth, and then those of each layer.

    Args:
        whole: of the whole, without the depth.
        layer: of one layer; layers' kinds are their names, so that what is learned of one holds for all.
    """

    def __init__(self, depths: tuple[int, ...], whole: Sequence[Dimension], layer: Sequence[Dimension]) -> None:
        self._own, self._each = 1 + len(whole), len(layer)
        self._depths = depths
        super().__init__(
            (
                Dimension("depth", depths, "depth", ordered=True),
                *whole,
                *(
                    Dimension(f"layer{n}/{one.name}", one.choices, f"layer/{one.kind}", one.ordered)
                    for n in range(1, depths[-1] + 1)
                    for one in layer
                ),
            )
        )

    def _active(self, architecture: Architecture) -> int:
        """How many dimensions count."""
        return self._own + self._each * self._depths[architecture[0]]

    def key(self, architecture: Architecture) -> Hashable:
        return architecture[: self._active(architecture)]

    def neighbours(self, architecture: Architecture) -> list[Architecture]:
        """All valid ones that differ in one choice that counts."""
        return [one for one in super().neighbours(architecture) if self.key(one) != self.key(architecture)]

    def weights(self, architecture: Architecture) -> int:
        """How many weights it has, about: nobody here knows how wide its inputs are, and how many classes there are."""
        raise NotImplementedError

    @property
    def feature_groups(self) -> tuple[int, ...]:
        return sum(map(len, self._choices)), 1

    def features(self, codes: Codes) -> Features:
        """How far each choice of a layer lies in the layers that are there, in all: [n, choices of a layer]; then the
        logarithm of the number of weights: of size, which no choice tells by itself, much of what is measured of a
        network is a function."""
        weights = np.log10([self.weights(tuple(code)) for code in codes.tolist()])
        return np.hstack((self._counts(codes), weights[:, None]))

    @property
    def _choices(self) -> list[tuple[Any, ...]]:
        """What can be chosen of a layer."""
        return [one.choices for one in self.dimensions[self._own : self._own + self._each]]

    def _counts(self, codes: Codes) -> Features:
        sizes = [len(one) for one in self._choices]
        found = np.zeros((len(codes), sum(sizes)))
        starts = np.cumsum([0, *sizes[:-1]])
        for row, architecture in zip(found, codes.tolist(), strict=True):
            for place in range(self._own, self._active(tuple(architecture))):
                row[starts[(place - self._own) % self._each] + architecture[place]] += 1
        return found / self._depths[-1]

    def diagrams(self, architecture: Architecture) -> list[Diagram]:
        """A row of layers, with what is chosen for each."""
        whole = [f"{d.name} {d.choices[c]}" for d, c in zip(self.dimensions, architecture[: self._own], strict=False)]
        layers = ["\n".join(f"{name} {_word(of)}" for name, of in one.items()) for one in self._layers(architecture)]
        nodes = ("input", *layers, "output")
        return [Diagram(", ".join(whole), nodes, tuple((n, n + 1) for n in range(len(nodes) - 1)))]

    def _layers(self, architecture: Architecture) -> list[dict[str, Any]]:
        """Of each layer that is there, what is chosen."""
        chosen = [d.choices[c] for d, c in zip(self.dimensions, architecture, strict=True)]
        names = [one.name.partition("/")[2] for one in self.dimensions[self._own : self._own + self._each]]
        places = range(self._own, self._active(architecture), self._each)
        return [dict(zip(names, chosen[place : place + self._each], strict=True)) for place in places]


class Cnn(Chain):
    """Chains of convolutions.

    Args:
        depths: how many layers there may be.
        widths: channels.
        kernels: sizes, odd.
        strides: of each layer.
        skips: whether it has a skip connection.
    """

    def __init__(
        self,
        depths: Sequence[int] = (1, 2, 3, 4, 5, 6),
        widths: Sequence[int] = (8, 16, 24, 32, 48, 64),
        kernels: Sequence[int] = (1, 3, 5, 7),
        strides: Sequence[int] = (1, 2),
        skips: Sequence[bool] = (False, True),
    ) -> None:
        layer = (
            Dimension("width", ascending("widths", widths), "width", ordered=True),
            Dimension("kernel", ascending("kernels", kernels, odd), "kernel", ordered=True),
            Dimension("stride", ascending("strides", strides), "stride", ordered=True),
            Dimension("skip", several("skips", skips, flag), "skip"),
        )
        super().__init__(ascending("depths", depths), (), layer)

    def model(self, architecture: Architecture) -> dict[str, Any]:
        return {"name": "cnn", "args": {"layers": self._layers(architecture)}}

    def weights(self, architecture: Architecture) -> int:
        before, found = 1, 0
        for layer in self._layers(architecture):
            width = layer["width"]
            projected = layer["skip"] and (before != width or layer["stride"] > 1)
            found += before * width * (layer["kernel"] ** 2 + projected) + 2 * width
            before = width
        return found + CLASSES * before


class Mlp(Chain):
    """Chains of fully connected layers.

    Args:
        depths: how many hidden layers there may be.
        widths: units of each.
        activations: relu, gelu, silu or tanh.
    """

    def __init__(
        self,
        depths: Sequence[int] = (1, 2, 3, 4),
        widths: Sequence[int] = (16, 32, 64, 128, 256),
        activations: Sequence[str] = ACTIVATIONS,
    ) -> None:
        known = several("activations", activations, lambda name, value: one_of(name, value, ACTIVATIONS))
        layer = (Dimension("width", ascending("widths", widths), "width", ordered=True),)
        super().__init__(ascending("depths", depths), (Dimension("activation", known, "activation"),), layer)

    def model(self, architecture: Architecture) -> dict[str, Any]:
        widths = [layer["width"] for layer in self._layers(architecture)]
        activation = self.dimensions[1].choices[architecture[1]]
        return {"name": "mlp", "args": {"widths": widths, "activation": activation}}

    def weights(self, architecture: Architecture) -> int:
        # Its inputs are taken to be as wide as a middling layer.
        every = self._choices[0]
        widths = [every[len(every) // 2], *(layer["width"] for layer in self._layers(architecture)), CLASSES]
        return sum(before * width for before, width in pairwise(widths))


class Transformer(Chain):
    """Transformer encoders (as in Chen et al., 2021: AutoFormer).

    Args:
        depths: how many layers there may be.
        widths: numbers in a token.
        heads: in a layer; they divide the width.
        feed_forwards: units of a layer's feed-forward part.
        patch: see the model.
    """

    def __init__(
        self,
        depths: Sequence[int] = (1, 2, 3, 4),
        widths: Sequence[int] = (32, 48, 64, 96),
        heads: Sequence[int] = (1, 2, 4, 8),
        feed_forwards: Sequence[int] = (32, 64, 128, 256),
        patch: int = 2,
    ) -> None:
        whole = (Dimension("width", ascending("widths", widths), "width", ordered=True),)
        layer = (
            Dimension("heads", ascending("heads", heads), "heads", ordered=True),
            Dimension("feed_forward", ascending("feed_forwards", feed_forwards), "feed_forward", ordered=True),
        )
        super().__init__(ascending("depths", depths), whole, layer)
        self._patch = positive("patch", patch)
        if not any(width % of == 0 for width in whole[0].choices for of in layer[0].choices):
            raise ValueError(f"heads must divide a width, and none of {list(heads)} divides one of {list(widths)}")

    def is_valid(self, architecture: Architecture) -> bool:
        width = self.dimensions[1].choices[architecture[1]]
        return all(width % layer["heads"] == 0 for layer in self._layers(architecture))

    def model(self, architecture: Architecture) -> dict[str, Any]:
        width = self.dimensions[1].choices[architecture[1]]
        return {
            "name": "transformer",
            "args": {"width": width, "layers": self._layers(architecture), "patch": self._patch},
        }

    def weights(self, architecture: Architecture) -> int:
        width = int(self.dimensions[1].choices[architecture[1]])
        each = (4 * width + 2 * int(layer["feed_forward"]) for layer in self._layers(architecture))
        return width * (CLASSES + sum(each))


def _word(choice: Any) -> str:
    return {True: "yes", False: "no"}[choice] if isinstance(choice, bool) else str(choice)
