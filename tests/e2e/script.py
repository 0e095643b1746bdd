"""A script as a user would write it, with a small model whose steps take a while: ``script.py map|stream PASSES``.

``WIDTH`` makes another model, ``LEAVE`` a worker that leaves its loop after so many passes, and ``COMPILES`` one whose
first step takes so many seconds.
"""

import os
import sys
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from adaptrain.elastic import Elastic
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset

WIDTH, LEAVE = int(os.environ.get("WIDTH", "16")), int(os.environ.get("LEAVE", "1000000"))

digits = load_digits()
x, y = torch.tensor(digits.data[:500]) / 16, torch.tensor(digits.target[:500])


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return iter(zip(x, y, strict=True))


kind, passes = sys.argv[1], int(sys.argv[2])
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10)).double()
optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
data = TensorDataset(x, y) if kind == "map" else Stream()

compiles = float(os.environ.get("COMPILES", "0"))

with Elastic(model, optimizer, data, batch_size=48, scheduler=scheduler) as elastic:
    # Either the number of passes ends training, or the script's own break.
    for _ in elastic.epochs(passes if kind == "stream" else 10 * passes):
        for inputs, classes in elastic:
            time.sleep(0.002 + compiles)
            compiles = 0.0
            elastic.step(F.cross_entropy(model(inputs), classes), clip_norm=1.0)
        scheduler.step()
        elastic.memory["passes"] = elastic.memory.get("passes", 0) + 1
        elastic.report(**{"val/loss": F.cross_entropy(model(x), y).item()})
        if elastic.memory["passes"] == passes or elastic.epoch >= LEAVE:
            break
