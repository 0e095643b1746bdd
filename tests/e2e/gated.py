"""A model whose first pass takes as long as a test likes, in workers that are told so in their environment."""

import os
import time
from pathlib import Path

import torch
from torch import nn

POLL_SECONDS = 0.02


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 10))
        self._gate = Path(os.environ["GATE"]) if "GATE" in os.environ else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if "BROKEN" in os.environ:
            raise RuntimeError("this accelerator knows no such layer")
        if self._gate is not None:
            reached(self._gate).touch()
            while not self._gate.exists():
                time.sleep(POLL_SECONDS)
        return self.layers(x)  # type: ignore[no-any-return]


def reached(gate: Path) -> Path:
    """Is there once a worker stands before a gate."""
    return gate.with_suffix(".reached")


def model() -> nn.Module:
    return Gated().double()


class Sharded(Gated):
    """Without what workers of several processes refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.layers[2] = nn.Identity()


def sharded() -> nn.Module:
    return Sharded().double()
