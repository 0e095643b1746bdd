"""Handwritten digits, 8 × 8 pixels: scikit-learn's copy of the UCI data set (Alpaydin and Kaynak, 1998)."""

import numpy as np
import torch
from sklearn.datasets import load_digits

from adaptrain.data import DataSet, Split
from adaptrain.seeds import derive

FRACTIONS = (0.6, 0.2)


def digits(split_seed: int = 0) -> DataSet:
    """1,797 images, split 60/20/20 into training, validation and test with each class in the same proportions.

    Args:
        split_seed: which of the possible splits.
    """
    if isinstance(split_seed, bool) or not isinstance(split_seed, int):
        raise ValueError("split_seed must be an integer")
    images, target = load_digits(return_X_y=True)
    x = torch.from_numpy(images.astype(np.float32)).reshape(-1, 1, 8, 8) / 16
    y = torch.from_numpy(target.astype(np.int64))
    random = np.random.default_rng(derive(split_seed, "digits"))
    parts: list[list[int]] = [[], [], []]
    for digit in range(10):
        ids = random.permutation(np.flatnonzero(target == digit))
        cuts = np.cumsum([round(f * len(ids)) for f in FRACTIONS])
        for part, chunk in zip(parts, np.split(ids, cuts), strict=True):
            part.extend(chunk.tolist())
    train, validation, test = (Split((x[sorted(part)], y[sorted(part)])) for part in parts)
    return DataSet(train, validation, test, shape=(1, 8, 8), classes=10)
