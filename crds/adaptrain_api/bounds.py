"""Bounds of what other machines' processes say: a user's image may write any of it.

What an honest process can say is never refused: text is cut, a measurement that is no sensible number counts as absent,
of too many measurements the first are kept. What it can't say is refused.
"""

import math
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field

from adaptrain_api.base import Readings

LARGEST_INTEGER = 2**53 - 1
"""Every reader of JSON has it exactly."""
LAST_MOMENT = 253_402_300_799.0
"""Unix time, seconds, of the last moment of the year 9999: no later one can be written as a date."""
LONGEST_NAME = 253
LONGEST_TEXT = 4096
LONGEST_DURATION = 1e9
"""Seconds: thirty years."""
MOST_READINGS = 256
PREFERRED = ("test/accuracy", "val/accuracy", "val/loss")
"""Metrics that tell a user most."""
MOST_PHASES = 16
"""Phases of a job."""
MOST_MEMBERS = 2000
MOST_VALUES = 2**14
"""In one free-form object."""
MOST_CHARACTERS = 2**18
"""In one free-form object."""


def _cut(text: object) -> object:
    return text[:LONGEST_TEXT] if isinstance(text, str) else text


def _seconds_or_none(value: object) -> object:
    """A duration that nothing lasts is unknown."""
    if not isinstance(value, int | float):
        return value
    return value if math.isfinite(value) and 0 <= value <= LONGEST_DURATION else None


def importance(metric: str) -> tuple[int, bool, bool, str]:
    """Sorts metrics by what they tell a user: first the headlines, then what an evaluation found, then all others."""
    name = metric.removeprefix("best/")
    headline = PREFERRED.index(name) if name in PREFERRED else len(PREFERRED)
    return headline, not metric.startswith(("test/", "val/", "best/")), name != metric, name


def _first(readings: object) -> object:
    """The most important ones."""
    if not isinstance(readings, dict):
        return readings
    names = [name for name in readings if isinstance(name, str) and len(name) <= LONGEST_NAME]
    names.sort(key=importance)
    return {name: readings[name] for name in names[:MOST_READINGS]}


def _small(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse what has too many values or too much text."""
    values, text, left = 0, 0, [value]
    while left:
        found: Any = left.pop()
        values += 1
        if isinstance(found, dict):
            text += sum(map(len, found))
            left += found.values()
        elif isinstance(found, list):
            left += found
        elif isinstance(found, str):
            text += len(found)
        elif isinstance(found, int) and abs(found) >= 2**63:
            raise ValueError("must hold integers of at most 64 bits")
        if values > MOST_VALUES or text > MOST_CHARACTERS:
            raise ValueError(f"must have at most {MOST_VALUES} values and {MOST_CHARACTERS} characters")
    return value


def last(most: int) -> BeforeValidator:
    """Of a list, the last so many."""
    return BeforeValidator(lambda found: found[-most:] if isinstance(found, list) else found)


def first(most: int) -> BeforeValidator:
    """Of a list, the first so many."""
    return BeforeValidator(lambda found: found[:most] if isinstance(found, list) else found)


Count: TypeAlias = Annotated[int, Field(ge=0, le=LARGEST_INTEGER)]
Number: TypeAlias = Annotated[int, Field(ge=0, le=2**31 - 1)]
"""Of a coordinator, a trial."""
Moment: TypeAlias = Annotated[float, Field(ge=0, le=LAST_MOMENT, allow_inf_nan=False)]
"""Unix time, seconds."""
Duration: TypeAlias = Annotated[float | None, BeforeValidator(_seconds_or_none), AfterValidator(_seconds_or_none)]
"""Seconds."""
Name: TypeAlias = Annotated[str, Field(max_length=LONGEST_NAME)]
Words: TypeAlias = Annotated[str, BeforeValidator(_cut)]
"""Text for a person."""
FewReadings: TypeAlias = Annotated[Readings, BeforeValidator(_first)]
Small: TypeAlias = Annotated[dict[str, Any], AfterValidator(_small)]
"""A free-form object of a bounded size."""
Values: TypeAlias = Annotated[dict[Name, Any], AfterValidator(_small)]
"""Values by name, of a bounded size."""
