"""Kubernetes' quantities as numbers, and what a container gets of them."""

import math
import re
from collections.abc import Iterable
from typing import Any

from adaptrain_api.training.containers import Resources
from adaptrain_api.training.job import dump

from adaptrain_operator.core.defaults import Bounds
from adaptrain_operator.core.observed import Object

_SCALE = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0}
_SCALE |= {letter: 1000.0**power for power, letter in enumerate("kMGTPE", 1)}
_SCALE |= {f"{letter}i": 1024.0**power for power, letter in enumerate("KMGTPE", 1)}


LARGEST = 2.0**63
"""The API server has no larger ones: it takes "1e400" for this."""


def quantity(text: Any) -> float:
    """A quantity as a number: ``500m`` is 0.5, ``1Ki`` is 1024.

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(r"([0-9.]+)([numkKMGTPE]?i?)", str(text))
    found = float(text) if match is None else float(match.group(1)) * _SCALE[match.group(2)]
    return min(found, LARGEST)


def at_least(resources: Object, least: Object) -> Object:
    """Resources of which none is less than another's."""
    result = {part: dict(resources.get(part) or {}) for part in ("requests", "limits")}
    for part, given in least.items():
        for name, value in given.items():
            if name not in result[part] or quantity(result[part][name]) < quantity(value):
                result[part][name] = value
    return result


def sized(given: Resources | None, default: Object, bounds: Bounds) -> Object:
    """What a container gets: the user's values as they are, and where there are none the defaults, which give way to
    the user's and to what the namespace's LimitRanges want."""
    users: Object = {} if given is None else dump(given)
    own = {part: users.get(part, {}) for part in ("limits", "requests")}
    result = {part: {**(default.get(part) or {}), **own[part]} for part in own}
    for part, values in result.items():
        for name in values.keys() - own[part].keys():
            if name in bounds.least:
                values[name] = max(values[name], bounds.least[name], key=quantity)
            if name in bounds.most:
                values[name] = min(values[name], bounds.most[name], key=quantity)
    limits, requests = result["limits"], result["requests"]
    for name in limits.keys() & requests.keys():
        if quantity(requests[name]) > quantity(limits[name]):
            if name not in own["limits"]:
                limits[name] = requests[name]
            elif name not in own["requests"]:
                requests[name] = limits[name]
        least = quantity(limits[name]) / quantity(bounds.ratio.get(name, "1E"))
        if name not in own["requests"] and quantity(requests[name]) < least:
            requests[name] = f"{math.ceil(least * 1000)}m"
    return {part: values for part, values in result.items() if values}


def bounds_of(ranges: Iterable[Object]) -> Bounds:
    """What LimitRanges want of a container; of several, the strictest."""
    least: dict[str, str] = {}
    most: dict[str, str] = {}
    ratio: dict[str, str] = {}
    strictest = (("min", least, max), ("max", most, min), ("maxLimitRequestRatio", ratio, min))
    for limits in (one for found in ranges for one in found["spec"].get("limits") or []):
        if limits.get("type") != "Container":
            continue
        for key, known, choose in strictest:
            for name, value in (limits.get(key) or {}).items():
                known[name] = choose(known.get(name, value), value, key=quantity)
    return Bounds(least, most, ratio)
