"""Checks of arguments that come from a manifest. All raise ValueError: a sentence with the argument and its bound."""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any


def positive(name: str, value: object) -> int:
    """An integer of at least 1.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 1 or value != int(value):
        raise ValueError(f"{name} must be an integer of at least 1, not {value!r}")
    return int(value)


def positive_number(name: str, value: object) -> float:
    """A finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a number above 0, not {value!r}")
    return float(value)


def odd(name: str, value: object) -> int:
    """An odd integer of at least 1: what a kernel must be to leave an image its size."""
    if positive(name, value) % 2 == 0:
        raise ValueError(f"{name} must be odd, so that an image keeps its size, not {value!r}: use 1, 3, 5 or 7")
    return positive(name, value)


def flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, not {value!r}")
    return value


def one_of(name: str, value: object, allowed: Collection[str]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
    return value


def several(name: str, value: object, check: Callable[[str, Any], Any]) -> tuple[Any, ...]:
    """A list with at least one item, none of them twice, each of which passes ``check``."""
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{name} must be a list with at least one item, not {value!r}")
    items = tuple(check(f"{name}[{n}]", item) for n, item in enumerate(value))
    if len(set(items)) < len(items):
        raise ValueError(f"{name} must not hold an item twice, as {value!r} does: remove the second one")
    return items


def ascending(name: str, value: object, check: Callable[[str, Any], Any] = positive) -> tuple[Any, ...]:
    """``several``, in order of size."""
    return tuple(sorted(several(name, value, check)))


def layers_of(value: object, fields: Mapping[str, tuple[Callable[[str, Any], Any], Any]]) -> list[dict[str, Any]]:
    """The argument ``layers``: a list with at least one object, each of ``fields``: their checks, and what absent ones
    are."""
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"layers must be a list with at least one layer, not {value!r}")
    found = []
    for n, layer in enumerate(value):
        if not isinstance(layer, Mapping) or not set(layer) <= set(fields):
            raise ValueError(f"layers[{n}] must be an object of {', '.join(fields)}, not {layer!r}")
        found.append({f: check(f"layers[{n}].{f}", layer.get(f, absent)) for f, (check, absent) in fields.items()})
    return found
