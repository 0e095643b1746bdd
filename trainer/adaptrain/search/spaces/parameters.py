"""A space that is written out in the manifest: a list of parameters, each with its values."""

import math
from typing import Any

from adaptrain_api.manifest import plain
from adaptrain_api.search.space import Parameter

from adaptrain.search.spaces.base import Architecture, Dimension, Space


class Parameters(Space):
    """Any combination of the parameters' values."""

    def __init__(self, parameters: list[Parameter]) -> None:
        super().__init__(
            tuple(Dimension(one.name, values(one), one.name, ordered=one.values is None) for one in parameters)
        )

    def choice(self, architecture: Architecture) -> dict[str, Any]:
        return {"parameters": self.describe(architecture)}


def values(parameter: Parameter) -> tuple[Any, ...]:
    """What a parameter may be, in order; whole numbers as integers."""
    if parameter.values is not None:
        meant = [plain(value) if isinstance(value, str) else value for value in parameter.values]
        return tuple({(type(value), value): value for value in meant}.values())
    assert parameter.min is not None
    assert parameter.max is not None
    low, high = parameter.min, parameter.max
    if parameter.step is not None:
        # A little more than what fits, so that rounding doesn't lose the last one.
        count = math.floor((high - low) / parameter.step * (1 + 1e-12) + 1e-9) + 1
        numbers = [low + n * parameter.step for n in range(count)]
    elif parameter.scale == "log":
        numbers = [low * (high / low) ** (n / (parameter.count - 1)) for n in range(parameter.count)]
    else:
        numbers = [low + (high - low) * n / (parameter.count - 1) for n in range(parameter.count)]
    rounded = [float(f"{number:.12g}") for number in numbers]
    whole = all(number.is_integer() for number in rounded)
    return tuple(dict.fromkeys(int(number) if whole else number for number in rounded))
