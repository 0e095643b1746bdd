"""Arguments that models share."""

import torch


def floating(name: str) -> torch.dtype:
    """float32 or float64.

    Raises:
        ValueError: another name.
    """
    if name not in ("float32", "float64"):
        raise ValueError(f"dtype must be float32 or float64, not {name!r}")
    return torch.float32 if name == "float32" else torch.float64


def channels(model: str, shape: tuple[int, ...]) -> int:
    """Channels of images of this shape.

    Raises:
        ValueError: it is none of images.
    """
    if len(shape) != 3:
        raise ValueError(f"{model} needs images of 3 dimensions, the data set's inputs have {len(shape)}: use mlp")
    return shape[0]
