"""What is the user's to choose of a job's pods."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from adaptrain_api.base import (
    DNS_LABEL,
    QUALIFIED_KEYS,
    Boolean,
    DnsLabel,
    DnsSubdomain,
    FreeForm,
    Integer,
    LabelValue,
    ListMap,
    Model,
    Quantities,
    Rule,
    Rules,
    Text,
    Texts,
    json_object,
    without_nulls,
)
from adaptrain_api.objects import immutable

RESERVED_ENV = ("ADAPTRAIN_", "MASTER_", "PET_")
"""Environment prefixes that belong to adaptrain and to the torchrun launcher."""
RESERVED_VOLUMES = "adaptrain-"
RESERVED_MOUNT = "/adaptrain"

MOUNT_PATH = r"^(/\.?[A-Za-z0-9_][-A-Za-z0-9_.]*)+$"
ENV_NAME = r"^[-._a-zA-Z][-._a-zA-Z0-9]*$"
IMAGE = r"^[!-~]+$"


class EnvVar(Model):
    """An environment variable, as in a container."""

    name: Annotated[Text, Field(pattern=ENV_NAME, max_length=253, description="Name of the variable.")]
    value: Annotated[Text | None, Field(description="Its value.")] = None
    value_from: Annotated[FreeForm | None, Field(description="As in a container.")] = None

    rules = (
        Rule(
            cel="!['ADAPTRAIN_', 'MASTER_', 'PET_'].exists(prefix, self.name.startsWith(prefix))",
            message="names that start with ADAPTRAIN_, MASTER_ or PET_ are set by adaptrain: choose another name",
            check=lambda self: not self.name.startswith(RESERVED_ENV),
            path=".name",
        ),
        Rule(
            cel="!(has(self.value) && has(self.valueFrom))",
            message="set value or valueFrom, not both",
            check=lambda self: self.value is None or self.value_from is None,
        ),
    )


class Toleration(Model):
    """A taint that worker pods tolerate, as in a pod."""

    key: Annotated[Text | None, Field(max_length=317, description="Absent, with operator Exists: every key.")] = None
    operator: Annotated[Literal["Exists", "Equal"] | None, Field(description="Absent: Equal.")] = None
    value: Annotated[LabelValue | None, Field(description="The taint's value, with operator Equal.")] = None
    effect: Annotated[
        Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None, Field(description="Absent: every effect.")
    ] = None
    toleration_seconds: Annotated[
        Integer | None, Field(ge=0, le=2**31 - 1, description="Seconds until a NoExecute taint evicts the worker.")
    ] = None

    rules = (
        Rule(
            cel="!has(self.value) || self.value == '' || !has(self.operator) || self.operator == 'Equal'",
            message="a toleration with operator Exists has no value: remove it or set operator to Equal",
            check=lambda self: not self.value or self.operator in (None, "Equal"),
            path=".value",
        ),
        Rule(
            cel="(has(self.key) && self.key != '') || (has(self.operator) && self.operator == 'Exists')",
            message="a toleration without key tolerates every taint: set operator to Exists, or give a key",
            check=lambda self: bool(self.key) or self.operator == "Exists",
        ),
        Rule(
            cel="!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            message="tolerationSeconds applies to effect NoExecute only: remove it or set the effect",
            check=lambda self: self.toleration_seconds is None or self.effect == "NoExecute",
            path=".tolerationSeconds",
        ),
    )


class VolumeMount(Model):
    """Where a volume appears in the worker's container, as in a container."""

    name: Annotated[DnsLabel, Field(description="One of workers.volumes.")]
    mount_path: Annotated[
        Text, Field(pattern=MOUNT_PATH, max_length=1024, description="An absolute path without '.' and '..'.")
    ]
    sub_path: Annotated[
        Text | None, Field(max_length=1024, description="A relative path in the volume; absent: its root.")
    ] = None
    read_only: Annotated[Boolean | None, Field(description="Workers can't write to it.")] = None

    rules = (
        Rule(
            cel=f"self.mountPath != '{RESERVED_MOUNT}' && !self.mountPath.startsWith('{RESERVED_MOUNT}/')",
            message="/adaptrain is where adaptrain mounts its own files: choose another mountPath",
            check=lambda self: not (self.mount_path + "/").startswith(RESERVED_MOUNT + "/"),
            path=".mountPath",
        ),
        Rule(
            cel="!has(self.subPath) || !(self.subPath.startsWith('/') || '..' in self.subPath.split('/'))",
            message="subPath must be a relative path without '..'",
            check=lambda self: (
                self.sub_path is None or not (self.sub_path.startswith("/") or ".." in self.sub_path.split("/"))
            ),
            path=".subPath",
        ),
    )


RESERVED_LABELS = Rule(
    cel="!self.exists(key, key.startsWith('adaptrain.io/') || key.startsWith('app.kubernetes.io/'))",
    message="keys under adaptrain.io/ and app.kubernetes.io/ are set by adaptrain: choose another prefix",
    check=lambda found: not any(key.startswith(("adaptrain.io/", "app.kubernetes.io/")) for key in found),
)

Labels = Annotated[
    dict[Text, LabelValue],
    BeforeValidator(without_nulls),
    Field(max_length=64),
    Rules(QUALIFIED_KEYS, RESERVED_LABELS),
]
Annotations = Annotated[Texts, Field(max_length=64), Rules(QUALIFIED_KEYS, RESERVED_LABELS)]
NodeSelector = Annotated[
    dict[Text, LabelValue], BeforeValidator(without_nulls), Field(max_length=64), Rules(QUALIFIED_KEYS)
]
ResourceList = Annotated[Quantities, Field(max_length=32), Rules(QUALIFIED_KEYS)]


def _has_volume_name(volume: dict[str, Any]) -> dict[str, Any]:
    name = volume.get("name")
    if not isinstance(name, str) or len(name) > 63 or re.fullmatch(DNS_LABEL[1:-1], name) is None:
        message = "a volume needs a name of at most 63 lower-case letters, digits and dashes"
        raise PydanticCustomError("rule", "{text}", {"text": message, "broken": [(".name", message)]})
    return volume


Volume = Annotated[
    dict[str, Any],
    BeforeValidator(json_object),
    AfterValidator(_has_volume_name),
    WithJsonSchema(
        {
            "type": "object",
            "description": "A volume as in a pod; only its name is looked at.",
            "x-kubernetes-preserve-unknown-fields": True,
            "required": ["name"],
            "properties": {"name": {"type": "string", "pattern": DNS_LABEL, "minLength": 1, "maxLength": 63}},
        }
    ),
    Rules(
        Rule(
            cel=f"!self.name.startsWith('{RESERVED_VOLUMES}')",
            message=f"names that start with {RESERVED_VOLUMES} belong to adaptrain's own volumes: choose another name",
            check=lambda volume: not volume["name"].startswith(RESERVED_VOLUMES),
            path=".name",
        )
    ),
]


class Resources(Model):
    """Compute resources of one worker pod, as in a container."""

    limits: Annotated[ResourceList | None, Field(description="Most that the pod may use.")] = None
    requests: Annotated[ResourceList | None, Field(description="What the scheduler sets aside; absent: limits.")] = None


MOUNTS_HAVE_VOLUMES = Rule(
    cel="!has(self.volumeMounts)"
    " || self.volumeMounts.all(m, has(self.volumes) && self.volumes.exists(v, v.name == m.name))",
    message="every volumeMount must name one of volumes beside it: add the volume or correct the name",
    check=lambda self: {mount.name for mount in self.volume_mounts} <= {v["name"] for v in self.volumes},
    path=".volumeMounts",
)


class PodTemplate(Model):
    """What is the user's to choose of a pod."""

    resources: Resources | None = None
    env: Annotated[list[EnvVar], Field(max_length=256), ListMap("name")] = []
    env_from: Annotated[list[FreeForm], Field(max_length=64, description="As in a container.")] = []
    node_selector: Annotated[NodeSelector | None, Field(description="Labels of the nodes to run on.")] = None
    tolerations: Annotated[list[Toleration], Field(max_length=64)] = []
    affinity: Annotated[FreeForm | None, Field(description="As in a pod.")] = None
    topology_spread_constraints: Annotated[list[FreeForm], Field(max_length=16, description="As in a pod.")] = []
    volumes: Annotated[list[Volume], Field(max_length=64, description="As in a pod."), ListMap("name")] = []
    volume_mounts: Annotated[list[VolumeMount], Field(max_length=64), ListMap("mountPath")] = []
    priority_class_name: Annotated[DnsSubdomain | None, Field(description="Of these pods.")] = None
    labels: Annotated[Labels | None, Field(description="Added to these pods.")] = None
    annotations: Annotated[Annotations | None, Field(description="Added to these pods.")] = None
    termination_grace_period_seconds: Annotated[
        Integer,
        Field(ge=1, le=3600, description="Seconds that a worker has to finish its step and save before it is killed."),
    ] = 30

    rules: ClassVar[tuple[Rule, ...]] = (MOUNTS_HAVE_VOLUMES,)


class Workers(PodTemplate):
    """The elastic worker pods."""

    min: Annotated[
        Integer, Field(ge=1, le=1000, description="Training waits while fewer workers than this are alive.")
    ] = 1
    max: Annotated[Integer, Field(ge=1, le=1000, description="Most workers that the job may have.")] = 1
    replicas: Annotated[
        Integer | None,
        Field(
            ge=1,
            le=1000,
            description="Workers wanted now (what kubectl scale writes; an autoscaler needs it set); absent: min.",
        ),
    ] = None
    processes_per_worker: Annotated[
        Integer,
        Field(ge=1, le=64, description="Processes of each worker: its model is sharded among them (FSDP)."),
    ] = 1

    rules = (
        Rule(
            cel="self.min <= self.max",
            message="workers.min must be at most workers.max: lower min or raise max",
            check=lambda self: self.min <= self.max,
        ),
        Rule(
            cel="!has(self.replicas) || (self.min <= self.replicas && self.replicas <= self.max)",
            message="workers.replicas must lie between workers.min and workers.max: change it or widen the bounds",
            check=lambda self: self.replicas is None or self.min <= self.replicas <= self.max,
        ),
        MOUNTS_HAVE_VOLUMES,
        immutable("processesPerWorker"),
    )

    @property
    def wanted(self) -> int:
        """The number of workers to run now."""
        return self.min if self.replicas is None else self.replicas
