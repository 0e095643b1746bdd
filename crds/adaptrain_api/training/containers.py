"""What is the user's to choose of a container, and of the volumes that it mounts.

What the ``restricted`` Pod Security level refuses has no field here, or needs a privilege: the administrator's word.
https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.alias_generators import to_snake

from adaptrain_api.base import (
    QUALIFIED_KEYS,
    Boolean,
    DnsLabel,
    DnsSubdomain,
    FreeForm,
    ListMap,
    Model,
    Quantities,
    Rule,
    Rules,
    Text,
    privilege,
)

RESERVED_ENV = ("ADAPTRAIN_", "MASTER_", "PET_")
"""Environment prefixes that belong to adaptrain and to the torchrun launcher."""
RESERVED_VOLUMES = "adaptrain-"
RESERVED_MOUNT = "/adaptrain"
RESERVED_CONTAINERS = ("worker", "coordinator", "source", "packages")

MOUNT_PATH = r"^(/\.?[A-Za-z0-9_][-A-Za-z0-9_.]*)+$"
ENV_NAME = r"^[-._a-zA-Z][-._a-zA-Z0-9]*$"
IMAGE = r"^[!-~]+$"

LONGEST_VALUE = 32768

VOLUME_PRIVILEGES = ("hostPath", "nfs", "iscsi", "fc", "image", "flexVolume")
"""Types of volumes that ``restricted`` refuses. Its own list: configMap, csi, downwardAPI, emptyDir, ephemeral,
persistentVolumeClaim, projected, secret."""

Argument = Annotated[Text, Field(max_length=4096)]
ResourceList = Annotated[Quantities, Field(max_length=32), Rules(QUALIFIED_KEYS)]


class KeySelector(Model):
    """A key of a ConfigMap or Secret in the job's namespace."""

    name: Annotated[DnsSubdomain, Field(description="Of the ConfigMap or Secret.")]
    key: Annotated[Text, Field(min_length=1, max_length=253, description="Whose value is taken.")]
    optional: Annotated[Boolean | None, Field(description="Whether it may be missing.")] = None


class EnvSource(Model):
    """Where a variable's value comes from, as in a container."""

    config_map_key_ref: Annotated[KeySelector | None, Field(description="A key of a ConfigMap.")] = None
    secret_key_ref: Annotated[KeySelector | None, Field(description="A key of a Secret.")] = None
    field_ref: Annotated[FreeForm | None, Field(description="A field of the pod, as in a container.")] = None
    resource_field_ref: Annotated[
        FreeForm | None, Field(description="A limit or request of the container, as in a container.")
    ] = None
    file_key_ref: Annotated[FreeForm | None, Field(description="A key of a file, as in a container.")] = None

    rules = (
        Rule(
            cel="[has(self.configMapKeyRef), has(self.secretKeyRef), has(self.fieldRef), has(self.resourceFieldRef),"
            " has(self.fileKeyRef)].filter(given, given).size() == 1",
            message="valueFrom needs one source: give configMapKeyRef, secretKeyRef, fieldRef, resourceFieldRef or"
            " fileKeyRef",
            check=lambda self: sum(source is not None for source in self.__dict__.values()) == 1,
        ),
    )


class EnvVar(Model):
    """An environment variable, as in a container."""

    name: Annotated[Text, Field(pattern=ENV_NAME, max_length=253, description="Name of the variable.")]
    value: Annotated[Text | None, Field(max_length=LONGEST_VALUE, description="Its value.")] = None
    value_from: Annotated[EnvSource | None, Field(description="Where its value comes from.")] = None

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


class OptionalReference(Model):
    """A ConfigMap or Secret in the job's namespace."""

    name: Annotated[DnsSubdomain, Field(description="Of the ConfigMap or Secret.")]
    optional: Annotated[Boolean | None, Field(description="Whether it may be missing.")] = None


class EnvFrom(Model):
    """A ConfigMap or Secret whose keys become environment variables, as in a container."""

    prefix: Annotated[Text | None, Field(max_length=253, description="Put before each key.")] = None
    config_map_ref: Annotated[OptionalReference | None, Field(description="A ConfigMap; or else a Secret.")] = None
    secret_ref: Annotated[OptionalReference | None, Field(description="A Secret; or else a ConfigMap.")] = None

    rules = (
        Rule(
            cel="has(self.configMapRef) != has(self.secretRef)",
            message="give configMapRef or secretRef, one of them",
            check=lambda self: (self.config_map_ref is None) != (self.secret_ref is None),
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


def _unusual(kind: str) -> Rule:
    return privilege(
        kind,
        f"!has(self.{kind})",
        f"a volume of type {kind}",
        lambda self: getattr(self, to_snake(kind)) is None,
        f".{kind}",
    )


_TYPE = Field(description="As in a pod.")
_PRIVILEGED = Field(description="As in a pod, where the administrator allows it.")


class Volume(Model):
    """A volume as in a pod. Without a type it is an empty folder."""

    name: Annotated[DnsLabel, Field(description="What volumeMounts call it.")]
    config_map: Annotated[FreeForm | None, _TYPE] = None
    csi: Annotated[FreeForm | None, _TYPE] = None
    downward_api: Annotated[FreeForm | None, Field(alias="downwardAPI", description="As in a pod.")] = None
    empty_dir: Annotated[FreeForm | None, _TYPE] = None
    ephemeral: Annotated[FreeForm | None, _TYPE] = None
    persistent_volume_claim: Annotated[FreeForm | None, _TYPE] = None
    projected: Annotated[FreeForm | None, _TYPE] = None
    secret: Annotated[FreeForm | None, _TYPE] = None
    host_path: Annotated[FreeForm | None, _PRIVILEGED] = None
    nfs: Annotated[FreeForm | None, _PRIVILEGED] = None
    iscsi: Annotated[FreeForm | None, _PRIVILEGED] = None
    fc: Annotated[FreeForm | None, _PRIVILEGED] = None
    image: Annotated[FreeForm | None, _PRIVILEGED] = None
    flex_volume: Annotated[FreeForm | None, _PRIVILEGED] = None

    rules = (
        Rule(
            cel=f"!self.name.startsWith('{RESERVED_VOLUMES}')",
            message=f"names that start with {RESERVED_VOLUMES} belong to adaptrain's own volumes: choose another name",
            check=lambda self: not self.name.startswith(RESERVED_VOLUMES),
            path=".name",
        ),
        *map(_unusual, VOLUME_PRIVILEGES),
    )


class Resources(Model):
    """Compute resources of one container, as in a container."""

    limits: Annotated[ResourceList | None, Field(description="Most that it may use.")] = None
    requests: Annotated[ResourceList | None, Field(description="What the scheduler sets aside; absent: limits.")] = None


class InitContainer(Model):
    """A container that runs to its end before the worker starts, or beside it. What it may do is what a worker may."""

    name: Annotated[DnsLabel, Field(description="Of the container.")]
    image: Annotated[
        Text | None, Field(pattern=IMAGE, max_length=1024, description="Its image; absent: the worker's.")
    ] = None
    command: Annotated[list[Argument], Field(max_length=64, description="Absent: the image's.")] = []
    args: Annotated[list[Argument], Field(max_length=64, description="Arguments of the command.")] = []
    working_dir: Annotated[Text | None, Field(max_length=1024, description="Absent: the image's.")] = None
    env: Annotated[list[EnvVar], Field(max_length=64, description="Environment variables."), ListMap("name")] = []
    env_from: Annotated[list[EnvFrom], Field(max_length=16, description="ConfigMaps and Secrets as variables.")] = []
    resources: Annotated[Resources | None, Field(description="Absent: the worker's.")] = None
    volume_mounts: Annotated[
        list[VolumeMount], Field(max_length=16, description="Where it sees workers.volumes."), ListMap("mountPath")
    ] = []
    restart_policy: Annotated[
        Literal["Always"] | None, Field(description="Always: it runs beside the worker (a sidecar).")
    ] = None

    rules = (
        Rule(
            cel=f"!(self.name in {list(RESERVED_CONTAINERS)!r}) && !self.name.startsWith('{RESERVED_VOLUMES}')",
            message=f"{', '.join(RESERVED_CONTAINERS)} and names that start with {RESERVED_VOLUMES} belong to"
            " adaptrain's own containers: choose another name",
            check=lambda self: self.name not in RESERVED_CONTAINERS and not self.name.startswith(RESERVED_VOLUMES),
            path=".name",
        ),
    )
