"""Handwritten digits, 8 × 8 pixels: scikit-learn's copy of the UCI data set (Alpaydin and Kaynak, 1998)."""

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from adaptrain.data.dataset import DataSet, Split
from adaptrain.data.rng import derive
from adaptrain.errors import InvalidJob

FRACTIONS = (0.6, 0.2)


def digits(split_seed: int = 0) -> DataSet:
    """1,797 images, split 60/20/20 into training, validation and test with each class in the same proportions.

    Args:
        split_seed: which of the possible splits.
    """
    if isinstance(split_seed, bool) or not isinstance(split_seed, int):
        raise ValueError("split_seed must be an integer")
    images, target = _table()
    x = torch.from_numpy(images.astype(np.float32)).reshape(-1, 1, 8, 8) / 16
    y = torch.from_numpy(target)
    random = np.random.default_rng(derive(split_seed, "digits"))
    parts: list[list[int]] = [[], [], []]
    for digit in range(10):
        ids = random.permutation(np.flatnonzero(target == digit))
        cuts = np.cumsum([round(f * len(ids)) for f in FRACTIONS])
        for part, chunk in zip(parts, np.split(ids, cuts), strict=True):
            part.extend(chunk.tolist())
    train, validation, test = (Split((x[sorted(part)], y[sorted(part)])) for part in parts)
    return DataSet(train, validation, test, shape=(1, 8, 8), classes=10)


def _table() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixels 0 to 16 [1797, 64] and digits [1797].

    Read from the package's file, as ``sklearn.datasets.load_digits`` does: importing scikit-learn for it would double
    the time that a worker takes to join.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise InvalidJob("data.name: digits needs scikit-learn in the image: install it, or use another data set")
    with gzip.open(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    return table[:, :-1], table[:, -1]
