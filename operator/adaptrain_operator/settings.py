"""Settings of the operator process, from ``ADAPTRAIN_OPERATOR_*`` environment variables."""

import json
import os
import socket
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from adaptrain_api.base import dump
from adaptrain_api.training.containers import Resources
from adaptrain_api.training.workers import PRIVILEGES, Toleration
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from adaptrain_operator.core.defaults import OURS, Defaults

PREFIX = "ADAPTRAIN_OPERATOR_"


def _names(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _json(value: object) -> object:
    return json.loads(value) if isinstance(value, str) else value


def _known(names: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := set(names) - set(PRIVILEGES):
        raise ValueError(f"{', '.join(sorted(unknown))}: known are {', '.join(PRIVILEGES)}")
    return names


class Settings(BaseModel):
    """Each field is read from the variable of its name: ``lease_name`` from ``ADAPTRAIN_OPERATOR_LEASE_NAME``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    namespaces: Annotated[tuple[str, ...], BeforeValidator(_names)] = ()
    """Namespaces to serve, comma-separated; empty: the whole cluster."""
    default_image: str = "adaptrain-trainer:latest"
    """Image of workers and coordinators whose job names none."""
    allow: Annotated[tuple[str, ...], BeforeValidator(_names), AfterValidator(_known)] = ()
    """Privileges that jobs may have, comma-separated: the chart's value ``jobs.allow``."""
    assigned_users: bool = False
    """Namespaces assign users and groups, as OpenShift's do."""
    coordinator_resources: Annotated[Resources, BeforeValidator(_json)] = Resources.model_validate(OURS.coordinator)
    """Of coordinators whose job gives none, as JSON."""
    worker_resources: Annotated[Resources, BeforeValidator(_json)] = Resources()
    """Of workers whose job gives none, as JSON."""
    tolerations: Annotated[tuple[Toleration, ...], BeforeValidator(_json)] = ()
    """Of all job pods, as JSON."""
    metrics_from: Annotated[tuple[dict[str, Any], ...], BeforeValidator(_json)] = ()
    """NetworkPolicy peers that may reach jobs' metrics, this operator among them, as JSON; empty: anyone may."""
    lease_name: str = "adaptrain-operator"
    """The Lease that the leader holds."""
    lease_namespace: str = "default"
    """Where it is."""
    lease_seconds: Annotated[float, Field(ge=2)] = 15.0
    """How long a leader that is not heard keeps the lead."""
    identity: str = Field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}")
    """Name of this process in the election; a pod's name, so that a restarted container takes up its own lead."""
    host: str = ""
    """Empty: all addresses, of IPv4 and IPv6."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """``/healthz``, ``/readyz`` and ``/metrics``; 0 picks a free one."""
    log_format: Literal["json", "text"] = "json"
    """A line of the log: json or text."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """DEBUG, INFO, WARNING or ERROR."""
    resync_seconds: Annotated[float, Field(ge=1)] = 120.0
    """How often everything is listed anew, whatever the watches said."""
    concurrency: Annotated[int, Field(ge=1, le=256)] = 16
    """Jobs that are worked on at the same time."""

    @property
    def defaults(self) -> Defaults:
        """What holds for the pods of jobs that say nothing."""
        return Defaults(
            coordinator=dump(self.coordinator_resources),
            workers=dump(self.worker_resources),
            tolerations=tuple(dump(one) for one in self.tolerations),
            metrics_from=self.metrics_from,
            assigned_user=self.assigned_users,
        )

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> "Settings":
        """Read the environment; an unknown variable of ours is an error, so that a typing mistake is noticed."""
        env = os.environ if env is None else env
        given: dict[str, Any] = {
            name.removeprefix(PREFIX).lower(): value for name, value in env.items() if name.startswith(PREFIX) and value
        }
        return cls.model_validate(given)
