"""A small model whose steps take a given time, so that faults strike in all parts of a step."""

import time

import torch
from torch import nn


class Paced(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10)).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            time.sleep(self._seconds)
        return self.layers(x)  # type: ignore[no-any-return]


def mlp(seconds: float = 0.01) -> nn.Module:
    return Paced(seconds)
