"""What is the user's to choose of a job's pods."""

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from adaptrain_api.base import (
    QUALIFIED_KEYS,
    Boolean,
    DnsSubdomain,
    FreeForm,
    Integer,
    LabelValue,
    ListMap,
    Model,
    Quantity,
    Rule,
    Rules,
    Text,
    Texts,
    privilege,
    without_nulls,
)
from adaptrain_api.objects import immutable
from adaptrain_api.training.containers import (
    VOLUME_PRIVILEGES,
    EnvFrom,
    EnvVar,
    InitContainer,
    Resources,
    Volume,
    VolumeMount,
)

PRIVILEGES = (*VOLUME_PRIVILEGES, "hostNetwork", "serviceAccountName", "capabilities", "root", "labels", "annotations")
"""What the chart's value ``jobs.allow`` may name."""

CAPABILITY = r"^[A-Z][A-Z0-9_]*$"


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


RESERVED = ("adaptrain.io/", "app.kubernetes.io/")
"""Prefixes of labels and annotations that no job may give; each has a rule of its own."""
RESERVED_LABELS = Rule(
    cel="!self.exists(key, key.startsWith('adaptrain.io/') || key.startsWith('app.kubernetes.io/'))",
    message="keys under adaptrain.io/ and app.kubernetes.io/ are set by adaptrain: choose another prefix",
    check=lambda found: not any(key.startswith(RESERVED) for key in found),
)

FREE_KEYS = "jobs.adaptrain.io/"
"""Prefix of labels and annotations that any job may give its pods: nobody's Service or policy selects by them."""
WELL_KNOWN = (
    "cluster-autoscaler.kubernetes.io/safe-to-evict",
    "karpenter.sh/do-not-disrupt",
    "kueue.x-k8s.io/priority-class",
    "kueue.x-k8s.io/queue-name",
    "linkerd.io/inject",
    "sidecar.istio.io/inject",
)
"""Keys that any job may give, too: they say how its own pods are queued, kept and injected."""


def _own_keys(name: str, danger: str) -> Rule:
    """By labels a pod becomes part of a Service, a budget or a policy, and by annotations it gets networks, identities
    and secrets from what acts on them."""
    return privilege(
        name,
        f"self.all(key, key.startsWith('{FREE_KEYS}') || key.startsWith('adaptrain.io/')"
        f" || key.startsWith('app.kubernetes.io/') || key in {list(WELL_KNOWN)})",
        f"a key that does not begin with {FREE_KEYS} and may {danger}",
        lambda found: all(key.startswith((FREE_KEYS, *RESERVED)) or key in WELL_KNOWN for key in found),
    )


Labels = Annotated[
    dict[Text, LabelValue],
    BeforeValidator(without_nulls),
    Field(max_length=64),
    Rules(QUALIFIED_KEYS, RESERVED_LABELS, _own_keys("labels", "make the pods part of another's Service or policy")),
]
Annotations = Annotated[
    Texts,
    Field(max_length=64),
    Rules(QUALIFIED_KEYS, RESERVED_LABELS, _own_keys("annotations", "give the pods networks, identities or secrets")),
]
NodeSelector = Annotated[
    dict[Text, LabelValue], BeforeValidator(without_nulls), Field(max_length=64), Rules(QUALIFIED_KEYS)
]

MOUNTS_HAVE_VOLUMES = Rule(
    cel="!has(self.volumeMounts)"
    " || self.volumeMounts.all(m, has(self.volumes) && self.volumes.exists(v, v.name == m.name))",
    message="every volumeMount must name one of volumes beside it: add the volume or correct the name",
    check=lambda self: {mount.name for mount in self.volume_mounts} <= {volume.name for volume in self.volumes},
    path=".volumeMounts",
)


INIT_MOUNTS_HAVE_VOLUMES = Rule(
    cel="!has(self.initContainers) || self.initContainers.all(c, !has(c.volumeMounts)"
    " || c.volumeMounts.all(m, has(self.volumes) && self.volumes.exists(v, v.name == m.name)))",
    message="every volumeMount of initContainers must name one of volumes beside them: add the volume or correct the"
    " name",
    check=lambda self: (
        {mount.name for container in self.init_containers for mount in container.volume_mounts}
        <= {volume.name for volume in self.volumes}
    ),
    path=".initContainers",
)
HOST_NETWORK = privilege(
    "hostNetwork",
    "!has(self.hostNetwork) || !self.hostNetwork",
    "the host's network",
    lambda self: not self.host_network,
    ".hostNetwork",
)
SERVICE_ACCOUNT = privilege(
    "serviceAccountName",
    "!has(self.serviceAccountName)",
    "another ServiceAccount than the job's own, which has no rights,",
    lambda self: self.service_account_name is None,
    ".serviceAccountName",
)


class Capabilities(Model):
    """Linux capabilities of the worker's process; all others are dropped."""

    add: Annotated[
        list[Annotated[Text, Field(pattern=CAPABILITY, max_length=64)]],
        Field(max_length=32, description="Such as IPC_LOCK; all but NET_BIND_SERVICE need the administrator's word."),
    ] = []

    rules = (
        privilege(
            "capabilities",
            "!has(self.add) || self.add.all(one, one == 'NET_BIND_SERVICE')",
            "a capability other than NET_BIND_SERVICE",
            lambda self: set(self.add) <= {"NET_BIND_SERVICE"},
            ".add",
        ),
    )


class SecurityContext(Model):
    """Who the pods' processes are. The rest is as ``restricted`` wants it: no privileges, a read-only root file system.

    Coordinators run as the same user and groups, since they write to the same volumes.
    """

    run_as_user: Annotated[
        Integer | None,
        Field(ge=0, le=2**31 - 1, description="User id; absent: 10001, or what the namespace assigns (OpenShift)."),
    ] = None
    run_as_group: Annotated[
        Integer | None, Field(ge=0, le=2**31 - 1, description="Primary group id; absent: as for the user.")
    ] = None
    run_as_non_root: Annotated[
        Boolean | None, Field(description="false: the image's user may be root, where the administrator allows it.")
    ] = None
    fs_group: Annotated[
        Integer | None, Field(ge=0, le=2**31 - 1, description="Group that owns the volumes; absent: as for the user.")
    ] = None
    fs_group_change_policy: Annotated[
        Literal["OnRootMismatch", "Always"] | None, Field(description="When volumes are given to fsGroup.")
    ] = None
    supplemental_groups: Annotated[
        list[Annotated[Integer, Field(ge=0, le=2**31 - 1)]], Field(max_length=32, description="More group ids.")
    ] = []
    capabilities: Annotated[Capabilities | None, Field(description="Of the worker's process.")] = None

    rules = (
        privilege(
            "root",
            "!has(self.runAsUser) || self.runAsUser > 0",
            "user 0 (root)",
            lambda self: self.run_as_user != 0,
            ".runAsUser",
        ),
        privilege(
            "root",
            "!has(self.runAsNonRoot) || self.runAsNonRoot",
            "runAsNonRoot false",
            lambda self: self.run_as_non_root is not False,
            ".runAsNonRoot",
        ),
    )


class PodTemplate(Model):
    """What is the user's to choose of a pod."""

    resources: Annotated[Resources | None, Field(description="Of each worker pod.")] = None
    env: Annotated[list[EnvVar], Field(max_length=256, description="Environment variables."), ListMap("name")] = []
    env_from: Annotated[list[EnvFrom], Field(max_length=64, description="ConfigMaps and Secrets as variables.")] = []
    init_containers: Annotated[
        list[InitContainer],
        Field(max_length=8, description="Run after the script's files were fetched, before the worker starts."),
        ListMap("name"),
    ] = []
    security_context: Annotated[SecurityContext | None, Field(description="Who the pods' processes are.")] = None
    service_account_name: Annotated[
        DnsSubdomain | None,
        Field(
            description="A ServiceAccount of the job's namespace, which must exist, for an identity in a cloud; its"
            " token is not mounted. Absent: one is made that may do nothing."
        ),
    ] = None
    runtime_class_name: Annotated[
        DnsSubdomain | None, Field(description="RuntimeClass, such as nvidia; absent: the cluster's default.")
    ] = None
    scheduler_name: Annotated[
        DnsSubdomain | None, Field(description="Scheduler of all the job's pods; absent: the cluster's default.")
    ] = None
    host_network: Annotated[
        Boolean, Field(description="Use the node's network, where the administrator allows it: one worker per node.")
    ] = False
    shared_memory: Annotated[
        Quantity | None,
        Field(description="Size of /dev/shm, which counts as memory; absent: as much as the memory limit."),
    ] = None
    node_selector: Annotated[NodeSelector | None, Field(description="Labels of the nodes to run on.")] = None
    tolerations: Annotated[
        list[Toleration], Field(max_length=64, description="Taints that these pods tolerate, beside jobs.tolerations.")
    ] = []
    affinity: Annotated[FreeForm | None, Field(description="As in a pod.")] = None
    topology_spread_constraints: Annotated[list[FreeForm], Field(max_length=16, description="As in a pod.")] = []
    volumes: Annotated[list[Volume], Field(max_length=64, description="As in a pod."), ListMap("name")] = []
    volume_mounts: Annotated[
        list[VolumeMount], Field(max_length=64, description="Where the worker sees them."), ListMap("mountPath")
    ] = []
    priority_class_name: Annotated[DnsSubdomain | None, Field(description="Of these pods.")] = None
    labels: Annotated[Labels | None, Field(description="Added to these pods.")] = None
    annotations: Annotated[Annotations | None, Field(description="Added to these pods.")] = None
    termination_grace_period_seconds: Annotated[
        Integer,
        Field(ge=1, le=3600, description="Seconds that a worker has to finish its step and save before it is killed."),
    ] = 30
    start_deadline_seconds: Annotated[
        Integer,
        Field(
            ge=30,
            le=86400,
            description=(
                "Seconds in which the container of a worker must report to the coordinator, prepared to train; one "
                "that does not is taken for hung, and replaced. Raise it if a script works for longer before its "
                "training begins, or if the first pass of a model takes longer (a compiler)."
            ),
        ),
    ] = 900

    rules: ClassVar[tuple[Rule, ...]] = (MOUNTS_HAVE_VOLUMES, INIT_MOUNTS_HAVE_VOLUMES, HOST_NETWORK, SERVICE_ACCOUNT)


class Coordinator(Model):
    """The small pod that knows which workers take part."""

    resources: Annotated[
        Resources | None,
        Field(description="Of its container; what is absent is taken from the chart's value jobs.coordinator."),
    ] = None


class RollingUpdate(Model):
    """How workers are replaced one after the other when their template changes."""

    max_unavailable: Annotated[
        Integer,
        Field(
            ge=0,
            le=1000,
            description="Workers that may leave before their successors take part, down to none, where there is no room"
            " for both at once; 0: there must be room for one more, or more than min.",
        ),
    ] = 0


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
    rolling_update: RollingUpdate | None = None

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
        *PodTemplate.rules,
        immutable("processesPerWorker"),
    )

    @property
    def wanted(self) -> int:
        """The number of workers to run now."""
        return self.min if self.replicas is None else self.replicas

    @property
    def max_unavailable(self) -> int:
        """Workers that a change of their template may cost for a while."""
        return 0 if self.rolling_update is None else self.rolling_update.max_unavailable
