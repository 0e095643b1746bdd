"""Augmentation whose randomness is a function of (seed, sample), so that it does not matter which worker draws it."""

import numpy as np
import torch
from adaptrain_api.phases.phase import Augmentation

from adaptrain.data.rng import normal, uniform
from adaptrain.errors import InvalidJob


def augment(
    x: torch.Tensor, ids: torch.Tensor, how: Augmentation, seed: int, path: str = "augmentation"
) -> torch.Tensor:
    """Images [n, channels, height, width] of the samples ``ids``, changed at random.

    Args:
        path: the augmentation's in the manifest.

    Raises:
        InvalidJob: pixels are to be moved, and the inputs are no images.
    """
    if (how.shift_pixels or how.horizontal_flip) and x.ndim != 4:
        raise InvalidJob(
            f"{path}: shiftPixels and horizontalFlip need images (3 dimensions); these inputs have {x.ndim - 1}"
        )
    counters = ids.numpy().astype(np.uint64) << np.uint64(32)
    if how.shift_pixels:
        x = _shift(x, counters, how.shift_pixels, seed)
    if how.horizontal_flip:
        flip = torch.from_numpy(uniform(seed, counters + np.uint64(2)) < 0.5)
        x = torch.where(flip[:, None, None, None], x.flip(3), x)
    if how.noise:
        size = x[0].numel()
        each = counters[:, None] + np.arange(16, 16 + size, dtype=np.uint64)[None, :]
        x = x + how.noise * torch.from_numpy(normal(seed, each)).view_as(x).to(x.dtype)
    return x


def _shift(
    x: torch.Tensor, counters: "np.ndarray[tuple[int], np.dtype[np.uint64]]", by: int, seed: int
) -> torch.Tensor:
    """Move each image by up to ``by`` pixels along each axis; zeros come in."""
    n, _, height, width = x.shape
    dy, dx = (
        torch.from_numpy(np.floor(uniform(seed, counters + np.uint64(axis)) * (2 * by + 1)).astype(np.int64))
        for axis in (0, 1)
    )
    padded = torch.nn.functional.pad(x, (by, by, by, by))
    rows = dy[:, None] + torch.arange(height)
    columns = dx[:, None] + torch.arange(width)
    return padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
