"""What the cluster's administrator says of all jobs' pods: the chart's values ``jobs``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a namespace's LimitRanges want of a container, by resource, as far as they are known."""

    least: Mapping[str, str] = field(default_factory=dict)
    most: Mapping[str, str] = field(default_factory=dict)
    ratio: Mapping[str, str] = field(default_factory=dict)
    """Of the limit to the request, at most."""


def _coordinator() -> Object:
    return {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"cpu": "1", "memory": "256Mi"}}


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a pod gets where its job says nothing."""

    coordinator: Object = field(default_factory=_coordinator)
    """Resources of coordinators; with limits, so that a ResourceQuota on limits admits them."""
    workers: Object = field(default_factory=dict)
    """Resources of workers."""
    tolerations: tuple[Object, ...] = ()
    """Taints that all pods tolerate."""
    metrics_from: tuple[Object, ...] = ()
    """NetworkPolicy peers that may reach jobs' metrics, and coordinators' progress; none: anyone may."""
    assigned_user: bool = False
    """The namespace assigns users and groups (OpenShift): a pod that names its own would be refused."""
    bounds: Bounds = field(default_factory=Bounds)


OURS = Defaults()
"""What holds where the administrator says nothing either."""
