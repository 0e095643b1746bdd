"""Models that can't be built everywhere."""

import os

from torch import nn


def on_second_process() -> nn.Module:
    """Fails on the second process of each worker."""
    if os.environ["LOCAL_RANK"] == "1":
        raise RuntimeError("this process has no accelerator")
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
