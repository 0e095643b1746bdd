"""Values that nobody expects, put anywhere into values that are right."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

NUMBERS: list[Any] = [0, -1, 1, 2**31, 2**53, 2**63, 2**70, 10**300, 0.5, 1e308, -1e300, float("inf"), float("nan")]
TEXTS: list[Any] = ["", "x", "x" * 5000, "\0", "\x1b[2J", "é" * 100, "\u202e", "../x", "1e999", "1Ki", "true", "\ud800"]
ODD: list[Any] = [None, True, False, *NUMBERS, *TEXTS, [], [1], {}, {"a": 1}, [[]] * 3, [{}], {"name": "x"}]


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the values inside are."""
    yield at
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*at, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*at, index))


def get(value: Any, at: tuple[Any, ...]) -> Any:
    for key in at:
        value = value[key]
    return value


def mutated(rng: random.Random, value: Any, base: tuple[Any, ...] = (), odd: list[Any] = ODD) -> Any:
    """The value with some of what is below ``base`` replaced, left out, moved or repeated."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 4)):
        inside = [at for at in places(get(value, base), base) if len(at) > len(base)]
        if not inside:
            break
        at = rng.choice(inside)
        parent = get(value, at[:-1])
        match rng.randrange(6):
            case 0 if isinstance(parent, dict):
                del parent[at[-1]]
            case 1 if isinstance(parent, dict):
                parent[rng.choice(["extra", "script", "checkpoint", "search", "epoch", "0"])] = copy.deepcopy(
                    rng.choice(odd)
                )
            case 2:
                parent[at[-1]] = copy.deepcopy(get(value, rng.choice(inside[:1] + inside)) if len(inside) < 300 else 1)
            case 3 if isinstance(parent, list):
                parent += copy.deepcopy(parent[:50])
            case _:
                parent[at[-1]] = copy.deepcopy(rng.choice(odd))
    return value


def line(rng: random.Random, frames: list[dict[str, Any]]) -> bytes:
    """A frame, or what is none."""
    match rng.randrange(8):
        case 0:
            return rng.randbytes(rng.randint(0, 300)) + b"\n"
        case 1:
            return rng.choice([b"x" * 300_000, b"[" * 50_000 + b"\n", b'{"is":' + b"9" * 6000 + b"}\n", b"\n", b"{}\n"])
    return json.dumps(mutated(rng, rng.choice(frames))).encode() + b"\n"
