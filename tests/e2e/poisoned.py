"""Digits of which one training image is no number: each pass has a step whose loss is none either."""

import os
from pathlib import Path

import torch
from adaptrain.data.dataset import DataSet, Split
from adaptrain.data.digits import digits


def one_image() -> DataSet:
    whole = digits()
    x, y = whole.train.fetch(torch.arange(len(whole.train)))
    x[7] = torch.nan
    return DataSet(Split((x, y)), whole.validation, whole.test, whole.shape, whole.classes)


class _Spoiled:
    """A map-style data set whose image 7 is spoiled once there is a checkpoint to go back to."""

    def __init__(self, split: Split) -> None:
        self._split = split

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = self._split.fetch(torch.tensor([index]))
        if index == 7 and any(Path(os.environ["ADAPTRAIN_CHECKPOINT_DIR"]).glob("step-*")):
            x[:] = torch.nan
        return x[0], y[0]


def after_a_checkpoint() -> DataSet:
    whole = digits()
    return DataSet(Split(_Spoiled(whole.train)), whole.validation, whole.test, whole.shape, whole.classes)
