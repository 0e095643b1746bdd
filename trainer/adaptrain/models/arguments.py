"""Number formats by name."""

import torch


def floating(name: str) -> torch.dtype:
    """float32 or float64.

    Raises:
        ValueError: another name.
    """
    if name not in ("float32", "float64"):
        raise ValueError(f"dtype must be float32 or float64, not {name!r}")
    return torch.float32 if name == "float32" else torch.float64


def positive(name: str, value: object) -> int:
    """An integer of at least 1.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 1 or value != int(value):
        raise ValueError(f"{name} must be an integer of at least 1, not {value!r}")
    return int(value)
