"""How a pod goes, read from its own container, which is found by its name.

Meshes, agents and policies add containers to a pod (https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/),
in any order. They count only where they decide whether ours can start, and where they run on after ours has ended.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from adaptrain_operator.core import naming

Object = dict[str, Any]

TERMINAL = ("Succeeded", "Failed")


def timestamp(text: str | None) -> float | None:
    """Seconds since the epoch of an API timestamp."""
    return None if not text else datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


@dataclass(frozen=True, slots=True)
class Exit:
    """How a container ended."""

    code: int
    reason: str
    message: str
    started: float | None
    finished: float | None
    init_container: str | None = None
    """The init container that this is of; absent: the pod's own container."""


@dataclass(frozen=True, slots=True)
class Containers:
    """What a pod's containers say of the one that is ours."""

    phase: str
    """As a pod's phase, but of our container: an injected one may keep a pod Pending or Running for ever."""
    ready: bool
    running_since: float | None
    waiting: tuple[str, str] | None
    """Why our container, or an init container before it, doesn't start: reason and message."""
    exit: Exit | None
    lingers: bool
    """Our container has ended, and another keeps the pod running."""
    image: str
    fetched: str | None
    """The termination message of the init container that fetches a script's files, once it has ended well."""


def read(pod: Object, name: str) -> Containers:
    """Read a pod whose own container is called ``name``."""
    spec, status = pod.get("spec", {}), pod.get("status", {})
    own = _find(status.get("containerStatuses"), name)
    state = own.get("state") or {}
    ended = _exit(state.get("terminated"))
    begun = "running" in state or ended is not None
    waiting = state.get("waiting")
    phase: str = status.get("phase", "Pending")
    others = [one for one in status.get("containerStatuses") or [] if one is not own]
    lingers = ended is not None and phase not in TERMINAL and any("terminated" not in _state(one) for one in others)
    if not begun:
        held_by = _first_unfinished(status.get("initContainerStatuses"), spec)
        waiting = _state(held_by).get("waiting", waiting)
        if phase in TERMINAL:
            ended = _exit(_state(held_by).get("terminated"), held_by.get("name"))
    if own and phase not in TERMINAL:
        phase = _phase(begun, ended)
    fetching = _state(_find(status.get("initContainerStatuses"), naming.SOURCE)).get("terminated", {})
    ready = {one["type"]: one["status"] for one in status.get("conditions") or []}.get("Ready") == "True"
    return Containers(
        phase=phase,
        ready=own.get("ready", ready),
        running_since=timestamp(state.get("running", {}).get("startedAt")),
        waiting=None if waiting is None else (waiting.get("reason", ""), waiting.get("message", "")),
        exit=ended,
        lingers=lingers,
        image=_find(spec.get("containers"), name).get("image", ""),
        fetched=fetching.get("message") if fetching.get("exitCode") == 0 else None,
    )


def _phase(begun: bool, ended: Exit | None) -> str:
    if ended is not None:
        return "Failed" if ended.code else "Succeeded"
    return "Running" if begun else "Pending"


def _find(containers: list[Object] | None, name: str) -> Object:
    return next((one for one in containers or [] if one.get("name", name) == name), {})


def _state(status: Object) -> Object:
    return status.get("state") or {}


def _first_unfinished(statuses: list[Object] | None, spec: Object) -> Object:
    """The init container that the next ones wait for: it has not ended well, or is a sidecar that has not started."""
    sidecars = {one.get("name") for one in spec.get("initContainers") or [] if one.get("restartPolicy") == "Always"}
    for one in statuses or []:
        if one.get("name") in sidecars:
            if "waiting" in _state(one):
                return one
        elif _state(one).get("terminated", {}).get("exitCode") != 0:
            return one
    return {}


def _exit(state: Object | None, init_container: str | None = None) -> Exit | None:
    if state is None:
        return None
    return Exit(
        code=state.get("exitCode", 0),
        reason=state.get("reason", ""),
        message=state.get("message", ""),
        started=timestamp(state.get("startedAt")),
        finished=timestamp(state.get("finishedAt")),
        init_container=init_container,
    )
