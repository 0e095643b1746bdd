"""A small model whose steps take a given time, so that faults strike in all parts of a step."""

import os
import time

import torch
from torch import nn


class Paced(nn.Module):
    def __init__(self, seconds: float, seconds_per_sample: float) -> None:
        super().__init__()
        self._seconds = seconds
        self._each = seconds_per_sample * float(os.environ.get("SLOWNESS", "1"))
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10)).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            time.sleep(self._seconds + self._each * len(x))
        return self.layers(x)  # type: ignore[no-any-return]


def mlp(seconds: float = 0.01, seconds_per_sample: float = 0.0) -> nn.Module:
    """``SLOWNESS`` in a worker's environment makes its samples take so many times as long."""
    return Paced(seconds, seconds_per_sample)
