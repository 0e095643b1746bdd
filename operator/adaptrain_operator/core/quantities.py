"""Kubernetes' quantities as numbers, and what a container gets of them."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from adaptrain_api.containers import Resources
from adaptrain_api.training import dump

from adaptrain_operator.core.observed import Object

_SCALE = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0}
_SCALE |= {letter: 1000.0**power for power, letter in enumerate("kMGTPE", 1)}
_SCALE |= {f"{letter}i": 1024.0**power for power, letter in enumerate("KMGTPE", 1)}


def quantity(text: Any) -> float:
    """A quantity as a number: ``500m`` is 0.5, ``1Ki`` is 1024.

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(r"([0-9.]+)([numkKMGTPE]?i?)", str(text))
    return float(text) if match is None else float(match.group(1)) * _SCALE[match.group(2)]


def at_least(resources: Object, least: Object) -> Object:
    """Resources of which none is less than another's."""
    result = {part: dict(resources.get(part) or {}) for part in ("requests", "limits")}
    for part, given in least.items():
        for name, value in given.items():
            if name not in result[part] or quantity(result[part][name]) < quantity(value):
                result[part][name] = value
    return result


def sized(given: Resources | None, default: Object, minima: Mapping[str, Any]) -> Object:
    """What a container gets: the user's values as they are, and where there are none the defaults, which make room for
    them and for the smallest values that the namespace's LimitRanges take."""
    users: Object = {} if given is None else dump(given)
    limits, requests = users.get("limits", {}), users.get("requests", {})
    result = {
        "limits": {**(default.get("limits") or {}), **limits},
        "requests": {**(default.get("requests") or {}), **requests},
    }
    for name, least in minima.items():
        for part, own in (("limits", limits), ("requests", requests)):
            value = result[part].get(name)
            if name not in own and value is not None and quantity(value) < quantity(least):
                result[part][name] = least
    for name, asked in result["requests"].items():
        most = result["limits"].get(name)
        if most is None or quantity(asked) <= quantity(most):
            continue
        if name not in limits:
            result["limits"][name] = asked
        elif name not in requests:
            result["requests"][name] = most
    return {part: values for part, values in result.items() if values}


def smallest(ranges: Iterable[Object]) -> dict[str, str]:
    """The least of each resource that LimitRanges want of a container."""
    minima: dict[str, str] = {}
    for limits in (one for found in ranges for one in found["spec"].get("limits") or []):
        for name, least in ((limits.get("min") or {}) if limits.get("type") == "Container" else {}).items():
            if name not in minima or quantity(least) > quantity(minima[name]):
                minima[name] = least
    return minima
