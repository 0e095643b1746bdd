"""A small model whose steps take a given time, as on an accelerator: what is measured is the elastic part."""

import os
import time
from pathlib import Path

import torch
from torch import nn


class Paced(nn.Module):
    """A multilayer perceptron on digits whose forward pass takes at least ``seconds``."""

    def __init__(self, seconds: float, width: int) -> None:
        super().__init__()
        self._seconds = seconds
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            time.sleep(self._seconds)
        return self.layers(x)  # type: ignore[no-any-return]


def mlp(seconds: float = 0.02, width: int = 128) -> nn.Module:
    return Paced(seconds, width)


def tuned(seconds: float, megabytes: int, parts: int = 16) -> nn.Module:
    """With so many megabytes that are not trained, as in fine-tuning."""
    model = mlp(seconds)
    elements = megabytes * 10**6 // 4 // parts
    base = (nn.Parameter(torch.ones(elements), requires_grad=False) for _ in range(parts))
    model.base = nn.ParameterList(base)
    return model


def at_gate(seconds: float) -> nn.Module:
    """Waits, before its worker says hello, for the file ``GATE``; ``GATE.<worker>`` tells that it does."""
    gate = Path(os.environ["GATE"])
    gate.with_suffix(f".{os.environ['ADAPTRAIN_WORKER_ID']}").touch()
    while not gate.exists():
        time.sleep(0.01)
    return mlp(seconds)
