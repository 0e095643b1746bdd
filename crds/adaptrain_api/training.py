"""AdaptiveTrainingJob: elastic PyTorch training that goes on while its workers come and go."""

import re
from datetime import datetime
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
    Number,
    Open,
    Quantities,
    Reading,
    Readings,
    Rule,
    Rules,
    Text,
    Texts,
    json_object,
    without_nulls,
)
from adaptrain_api.base import dump as dump

GROUP = "adaptrain.io"
VERSION = "v1alpha1"
KIND = "AdaptiveTrainingJob"
PLURAL = "adaptivetrainingjobs"

MAX_NAME = 40
"""Longest job name: every child's name and label (``<job>-coordinator-<number>``) must fit into 63 characters."""

MOST_METRICS = 64
"""Metrics in a status."""

RESERVED_ENV = ("ADAPTRAIN_", "MASTER_", "PET_")
"""Environment prefixes that belong to adaptrain and to the torchrun launcher."""
RESERVED_VOLUMES = "adaptrain-"
RESERVED_MOUNT = "/adaptrain"

MOUNT_PATH = r"^(/\.?[A-Za-z0-9_][-A-Za-z0-9_.]*)+$"
COMPONENT = r"^([a-z][a-z0-9_]*|[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*)$"
ENV_NAME = r"^[-._a-zA-Z][-._a-zA-Z0-9]*$"
IMAGE = r"^[!-~]+$"
SHA256 = r"^[0-9a-f]{64}$"
GIT_URL = r"^https?://[!-?A-~]+$"

Component = Annotated[Text, Field(pattern=COMPONENT, max_length=253)]


class LocalObjectReference(Model):
    """A reference to an object in the job's namespace."""

    name: Annotated[DnsSubdomain, Field(description="Name of a Secret in the job's namespace.")]


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


def immutable(field: str, what: str = "job") -> Rule:
    """A field that stays as it was when the object was made."""
    return Rule(
        cel=f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})",
        message=f"{field} can't be changed while the {what} exists: create a new {what}",
        path=f".{field}",
    )


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


MODELS = ("resnet", "mlp", "cnn", "transformer", "nasbench201", "nasnet", "darts", "nasbenchgraph")


class ModelSource(Model):
    """What is trained."""

    name: Annotated[
        Component, Field(description=f"{', '.join(MODELS)}, or module:callable of a torch.nn.Module in the image.")
    ]
    args: Annotated[FreeForm, Field(description="Keyword arguments of the model.")] = {}

    rules = (
        Rule(
            cel=f"self.name in {list(MODELS)} || self.name.contains(':')",
            message=f"model.name must be {', '.join(MODELS)}, or module:callable from the image",
            check=lambda self: self.name in MODELS or ":" in self.name,
            path=".name",
        ),
    )


class DataSource(Model):
    """What it is trained on."""

    name: Annotated[Component, Field(description="digits, or module:callable of a data set in the image.")]
    args: Annotated[FreeForm, Field(description="Keyword arguments of the data set.")] = {}

    rules = (
        Rule(
            cel="self.name == 'digits' || self.name.contains(':')",
            message="data.name must be digits, or module:callable from the image",
            check=lambda self: self.name == "digits" or ":" in self.name,
            path=".name",
        ),
    )


class Optimizer(Model):
    """Which optimizer, with torch's defaults where a field is absent."""

    name: Annotated[Literal["adamw", "sgd"], Field(description="AdamW, or SGD with momentum.")] = "adamw"
    learning_rate: Annotated[Number, Field(gt=0, le=100, description="Step size.")]
    weight_decay: Annotated[Number | None, Field(ge=0, le=10, description="Decay of the weights per step.")] = None
    momentum: Annotated[Number | None, Field(ge=0, lt=1, description="sgd only.")] = None
    clip_norm: Annotated[
        Number | None, Field(gt=0, le=1e6, description="Largest norm of the whole gradient; absent: it is not clipped.")
    ] = None

    rules = (
        Rule(
            cel="!has(self.momentum) || self.name == 'sgd'",
            message="optimizer.momentum applies to sgd only: remove it or set name to sgd",
            check=lambda self: self.momentum is None or self.name == "sgd",
            path=".momentum",
        ),
    )


class Batch(Model):
    """How many samples make one optimizer step."""

    size: Annotated[Integer, Field(ge=1, le=1048576, description="Samples per step, over all workers together.")]
    micro_size: Annotated[
        Integer | None,
        Field(
            ge=1,
            le=1048576,
            description="Most samples that a worker computes at once: it adds up the gradients of several such parts"
            " where its share is larger than its memory. Absent: the whole share at once.",
        ),
    ] = None


class EarlyStopping(Model):
    """Stop when the validation metric has not improved for a while."""

    metric: Annotated[Literal["val/accuracy", "val/loss"], Field(description="What has to improve.")] = "val/accuracy"
    patience: Annotated[
        Integer, Field(ge=1, le=100000, description="Epochs without a better value before stopping.")
    ] = 5


class Stop(Model):
    """When the phase ends: whichever comes first."""

    epochs: Annotated[Integer | None, Field(ge=1, le=1000000, description="Passes over the training set.")] = None
    steps: Annotated[Integer | None, Field(ge=1, le=1000000000, description="Optimizer steps.")] = None
    early_stopping: EarlyStopping | None = None

    rules = (
        Rule(
            cel="has(self.epochs) || has(self.steps)",
            message="stop needs epochs or steps, so that training has an end",
            check=lambda self: self.epochs is not None or self.steps is not None,
        ),
    )


class Augmentation(Model):
    """Random changes of each training sample, drawn from (seed, epoch, sample) and never from the worker."""

    shift_pixels: Annotated[Integer, Field(ge=0, le=64, description="Largest shift along each axis, in pixels.")] = 0
    horizontal_flip: Annotated[Boolean, Field(description="Mirror half of the samples.")] = False
    noise: Annotated[
        Number, Field(ge=0, le=10, description="Standard deviation of Gaussian noise, in input units.")
    ] = 0.0


class SupervisedPhase(Model):
    """Minimize cross-entropy on labelled samples."""

    name: Annotated[DnsLabel, Field(description="A name of your choice.")]
    type: Annotated[Literal["supervised"], Field(description="What the phase does.")]
    optimizer: Optimizer
    batch: Batch
    stop: Stop
    augmentation: Augmentation | None = None
    precision: Annotated[
        Literal["float32", "bfloat16"],
        Field(
            description="bfloat16: the forward pass computes in it where torch.autocast does; parameters, gradients and"
            " the optimizer stay as they are. float32: everything in the model's own numbers."
        ),
    ] = "float32"
    non_finite: Annotated[
        Literal["fail", "skip", "rollback"],
        Field(
            description="When a step's loss or gradient is infinite or no number. fail: so does the job. skip: the"
            " step's samples are passed over. rollback: they are, and weights and optimizer go back to the newest"
            " checkpoint that is sound. The job fails when this happens 10 times in a row."
        ),
    ] = "fail"


class ConfigMapSource(Model):
    """Files from a ConfigMap."""

    name: Annotated[DnsSubdomain, Field(description="A ConfigMap in the job's namespace; each key is a file.")]


class GitSource(Model):
    """Files of a commit in a git repository."""

    url: Annotated[
        Text,
        Field(
            max_length=1024,
            pattern=GIT_URL,
            description="Of the repository, over HTTP or HTTPS; credentials belong into secretRef.",
        ),
    ]
    ref: Annotated[
        Text,
        Field(
            min_length=1,
            max_length=256,
            description="A branch, a tag, or a commit in full. All workers get the commit that the first one got.",
        ),
    ] = "HEAD"
    secret_ref: Annotated[
        LocalObjectReference | None,
        Field(description="A Secret of type kubernetes.io/basic-auth: keys username and password, or a token as one."),
    ] = None


class Source(Model):
    """Where a script's files come from, beside the image."""

    config_map: Annotated[ConfigMapSource | None, Field(description="A ConfigMap; or else git.")] = None
    git: Annotated[GitSource | None, Field(description="A git repository; or else a ConfigMap.")] = None

    rules = (
        Rule(
            cel="has(self.configMap) != has(self.git)",
            message="give configMap or git, one of them",
            check=lambda self: (self.config_map is None) != (self.git is None),
        ),
    )


class Script(Model):
    """A program of your own, instead of model, data and phases."""

    launcher: Annotated[
        Literal["adaptrain", "torchrun"],
        Field(
            description="adaptrain: the program trains with adaptrain.elastic, and goes on when workers come and go."
            " torchrun: it is written for torchrun, and is started anew then."
        ),
    ] = "adaptrain"
    command: Annotated[
        list[Annotated[Text, Field(min_length=1, max_length=4096)]],
        Field(min_length=1, max_length=64, description="Program and arguments, run in each process of every worker."),
    ]
    source: Annotated[
        Source | None, Field(description="Files that the command finds in its working directory; absent: the image's.")
    ] = None

    rules = (
        Rule(
            cel="self.command[0] != 'torchrun'",
            message="adaptrain takes torchrun's place: set launcher to torchrun, and begin the command with python",
            check=lambda self: self.command[0] != "torchrun",
            path=".command",
        ),
    )


class PersistentVolumeClaim(Model):
    """A claim that every worker can mount."""

    claim_name: Annotated[DnsSubdomain, Field(description="A claim in the job's namespace.")]


class CheckpointVolume(Model):
    """Storage that outlives the workers."""

    persistent_volume_claim: PersistentVolumeClaim


BUCKET_PATH = r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9](/[A-Za-z0-9_][A-Za-z0-9_.=-]*)*"


class Checkpoint(Model):
    """Where and how often the training state is saved. Without it, a job whose workers all die starts again."""

    volume: Annotated[CheckpointVolume | None, Field(description="A volume; or else a uri.")] = None
    uri: Annotated[
        Text | None,
        Field(
            max_length=1024,
            description="A bucket, perhaps with a prefix, such as s3://bucket/prefix; each job has a folder there.",
        ),
    ] = None
    secret_ref: Annotated[
        LocalObjectReference | None,
        Field(description="A Secret whose keys are set in the workers' environment, such as AWS_ACCESS_KEY_ID."),
    ] = None
    every_seconds: Annotated[Integer, Field(ge=1, le=86400, description="Seconds between checkpoints.")] = 60
    keep: Annotated[Integer, Field(ge=1, le=1000, description="Newest checkpoints that are kept.")] = 3
    keep_best: Annotated[
        Boolean,
        Field(
            description="Save when the metric that decides which model is the best improves, and keep the first"
            " checkpoint that has its best value beside the newest ones."
        ),
    ] = False
    verify: Annotated[
        Boolean, Field(description="Read each checkpoint again after it was saved, and compare it with its manifest.")
    ] = False

    rules = (
        Rule(
            cel="has(self.volume) != has(self.uri)",
            message="checkpoint needs either a volume or a uri: give one of them",
            check=lambda self: (self.volume is None) != (self.uri is None),
        ),
        Rule(
            cel="!has(self.uri) || ['s3://', 'gs://'].exists(scheme, self.uri.startsWith(scheme))",
            message="checkpoint.uri must begin with s3:// or gs://: use one of these stores, or"
            " checkpoint.volume for anything that a PersistentVolumeClaim can be",
            check=lambda self: self.uri is None or self.uri.startswith(("s3://", "gs://")),
            path=".uri",
        ),
        Rule(
            cel=f"!has(self.uri) || !self.uri.contains('://') || self.uri.matches('^[^:]*://{BUCKET_PATH}$')",
            message="checkpoint.uri must be scheme://bucket or scheme://bucket/prefix, without a slash at its end; the"
            " prefix may hold letters, digits, '_', '-', '.', '=' and '/'",
            check=lambda self: (
                self.uri is None
                or "://" not in self.uri
                or re.fullmatch(f"[^:]*://{BUCKET_PATH}", self.uri) is not None
            ),
            path=".uri",
        ),
        Rule(
            cel="!has(self.secretRef) || has(self.uri)",
            message="checkpoint.secretRef holds the credentials for checkpoint.uri: remove it, or give a uri",
            check=lambda self: self.secret_ref is None or self.uri is not None,
            path=".secretRef",
        ),
    )


class InitialWeights(Model):
    """What the model's weights are before the first step, rather than random: a safetensors file."""

    volume: Annotated[CheckpointVolume, Field(description="Where the file is; it is only read.")]
    path: Annotated[
        Text,
        Field(
            min_length=1,
            max_length=1024,
            description="Of the file in the volume, such as team.digits/model.safetensors.",
        ),
    ]
    sha256: Annotated[
        Text | None,
        Field(pattern=SHA256, description="The file's digest, as sha256sum tells it; absent: any will do."),
    ] = None

    rules = (
        Rule(
            cel="!(self.path.startsWith('/') || '..' in self.path.split('/'))",
            message="initialWeights.path must be a relative path without '..', from the volume's root",
            check=lambda self: not (self.path.startswith("/") or ".." in self.path.split("/")),
            path=".path",
        ),
    )


class TrainingJobSpec(Model):
    """What the user wants."""

    image: Annotated[
        Text | None, Field(pattern=IMAGE, max_length=1024, description="Worker image; absent: the chart's.")
    ] = None
    image_pull_policy: Annotated[
        Literal["Always", "IfNotPresent", "Never"] | None, Field(description="As in a container.")
    ] = None
    image_pull_secrets: Annotated[list[LocalObjectReference], Field(max_length=16), ListMap("name")] = []
    workers: Workers = Workers()
    model: ModelSource | None = None
    data: DataSource | None = None
    phases: Annotated[list[SupervisedPhase] | None, Field(min_length=1, max_length=1), ListMap("name")] = None
    initial_weights: InitialWeights | None = None
    script: Script | None = None
    search: Annotated[
        FreeForm | None,
        Field(description="Set by the operator: the spec of the ArchitectureSearch whose trials the workers run."),
    ] = None
    seed: Annotated[Integer, Field(ge=0, le=2**31 - 1, description="Seed of everything random in the job.")] = 0
    checkpoint: Checkpoint | None = None
    max_restarts: Annotated[
        Integer,
        Field(ge=0, le=1000, description="Failures of the workers' own (not disruptions) before the job fails."),
    ] = 10
    suspend: Annotated[Boolean, Field(description="Remove the workers and keep the progress.")] = False
    active_deadline_seconds: Annotated[
        Integer | None, Field(ge=1, le=2**31 - 1, description="Seconds that the job may run before it fails.")
    ] = None
    ttl_seconds_after_finished: Annotated[
        Integer | None,
        Field(ge=0, le=2**31 - 1, description="Seconds after its end until the job is deleted; absent: never."),
    ] = None

    rules = (
        Rule(
            cel="has(self.script) || has(self.search)"
            " ? !has(self.model) && !has(self.data) && !has(self.phases) && has(self.script) != has(self.search)"
            " : has(self.model) && has(self.data) && has(self.phases)",
            message="give model, data and phases, or else a script, which has its own",
            check=lambda self: (
                {self.model is None, self.data is None, self.phases is None}
                == {self.script is not None or self.search is not None}
                and (self.script is None or self.search is None)
            ),
        ),
        Rule(
            cel="!has(self.initialWeights) || has(self.model)",
            message="initialWeights go into model, which a script has not: remove them, and have the script load them",
            check=lambda self: self.initial_weights is None or self.model is not None,
            path=".initialWeights",
        ),
        Rule(
            cel="has(self.checkpoint) || !has(self.phases) || self.phases.all(p, p.nonFinite != 'rollback')",
            message="a phase whose nonFinite is rollback needs checkpoints to go back to: give checkpoint",
            check=lambda self: (
                self.checkpoint is not None or all(p.non_finite != "rollback" for p in self.phases or [])
            ),
        ),
        Rule(
            cel="!has(self.script) || !has(self.workers) || self.workers.processesPerWorker == 1"
            " || self.script.launcher == 'torchrun'",
            message="a script is one process of each worker unless its launcher is torchrun:"
            " set processesPerWorker to 1, and give the job more workers",
            check=lambda self: self.script is None or self.workers.processes_per_worker == 1 or self.torchrun,
            path=".workers.processesPerWorker",
        ),
        Rule(
            cel="!has(self.script) || self.script.launcher != 'torchrun' || !has(self.checkpoint)"
            " || !has(self.checkpoint.uri)",
            message="a script with launcher torchrun saves files of its own: give it checkpoint.volume, not a uri",
            check=lambda self: not self.torchrun or self.checkpoint is None or self.checkpoint.uri is None,
            path=".checkpoint.uri",
        ),
        *map(immutable, ("model", "data", "phases", "initialWeights", "script", "seed")),
    )

    @property
    def source(self) -> Source | None:
        """Where the workers' files come from, beside the image."""
        if self.search is not None:
            given = self.search["spec"]["trial"].get("source")
            return None if given is None else Source.model_validate(given)
        return None if self.script is None else self.script.source

    @property
    def wanted_workers(self) -> int:
        """The number of workers to run now: a search whose trials are jobs has none of its own."""
        if self.search is not None and self.search["spec"].get("execution") == "Jobs":
            return 0
        return self.workers.wanted

    @property
    def torchrun(self) -> bool:
        """Whether the job is a script that is written for torchrun."""
        return self.script is not None and self.script.launcher == "torchrun"


class ObjectMeta(Model):
    """The part of Kubernetes' metadata that rules and the trainer read; everything else passes."""

    model_config = {**Model.model_config, "extra": "allow"}

    name: Text
    namespace: str | None = None
    uid: str | None = None


class Condition(Open):
    """metav1.Condition."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str
    last_transition_time: datetime
    observed_generation: int | None = None


class TrainedModel(Open):
    """The best weights that the job left."""

    path: Annotated[
        str, Field(description="Of the safetensors file: its path in the checkpoint volume, or its whole URI.")
    ]
    metric: str | None = None
    value: Reading = None
    step: int | None = None


class AvoidedNode(Open):
    """A node that went silent: no worker is placed there until its Lease is renewed."""

    name: str
    since: Annotated[datetime, Field(description="When it was last heard.")]


class RecentChange(Open):
    """Something that happened to the workers as a group, in words."""

    change: Annotated[str, Field(description="Its coordinator's number and its own.")]
    time: datetime
    message: str
    stall_seconds: Annotated[
        Reading, Field(description="The longest time, seconds, that a worker stood still for it beyond a usual step.")
    ] = None


class TrainingJobStatus(Open):
    """What is. Written by the operator alone."""

    phase: Literal["Pending", "Running", "Suspended", "Succeeded", "Failed"] | None = None
    observed_generation: int | None = None
    conditions: Annotated[list[Condition], ListMap("type")] = []
    replicas: Annotated[int | None, Field(description="Worker pods that exist (what /scale reads).")] = None
    ready_replicas: Annotated[int | None, Field(description="Workers that take part in training.")] = None
    selector: Annotated[str | None, Field(description="Label selector of the worker pods, for /scale.")] = None
    workers: Annotated[str | None, Field(description="Workers ready/wanted.")] = None
    step: Annotated[int | None, Field(description="Optimizer steps applied.")] = None
    epoch: Annotated[int | None, Field(description="Passes over the training set that are complete.")] = None
    loss: Annotated[Reading, Field(description="Training loss, mean of the last steps.")] = None
    metric: Annotated[str | None, Field(description="Newest validation metric; at the end the test's.")] = None
    metrics: Annotated[
        Readings,
        Field(
            max_length=MOST_METRICS,
            description="What training had reached when it was complete; best/NAME is of the best epoch.",
        ),
    ] = {}
    eta: Annotated[str | None, Field(description="Time left, estimated.")] = None
    goodput: Annotated[
        str | None, Field(description="Part of the time since the first step that was spent on steps that count.")
    ] = None
    skipped_steps: Annotated[
        int | None, Field(description="Steps passed over since their loss or gradient was not finite; absent: none.")
    ] = None
    recent_changes: Annotated[
        list[RecentChange], Field(description="The newest changes of membership, who and why and what they cost.")
    ] = []
    model: TrainedModel | None = None
    next_worker: Annotated[int | None, Field(description="Number of the next worker pod; never used twice.")] = None
    coordinator: Annotated[int | None, Field(description="Number of the newest coordinator.")] = None
    restarts: Annotated[int | None, Field(description="Failures of the workers' own that were counted.")] = None
    last_failure_time: Annotated[datetime | None, Field(description="When the last counted failure happened.")] = None
    avoided_nodes: Annotated[list[AvoidedNode], Field(description="Nodes that get no worker for now.")] = []
    source_commit: Annotated[str | None, Field(description="Commit of script.source.git that all workers run.")] = None
    start_time: datetime | None = None
    completion_time: datetime | None = None


def name_rules(longest: int) -> tuple[Rule, ...]:
    """What the names of our resources must be, since others are made from them."""
    return (
        Rule(
            cel=f"size(self.metadata.name) <= {longest}",
            message=f"metadata.name must have at most {longest} characters, so that its pods' names fit: shorten it",
            check=lambda self: len(self.metadata.name) <= longest,
        ),
        Rule(
            cel="self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
            message="metadata.name must start with a letter and hold only lower-case letters, digits and dashes,"
            " since a Service is named after it",
            check=lambda self: re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", self.metadata.name) is not None,
        ),
    )


class AdaptiveTrainingJob(Model):
    """Elastic PyTorch training that goes on while its workers come and go."""

    api_version: Literal["adaptrain.io/v1alpha1"] = "adaptrain.io/v1alpha1"
    kind: Literal["AdaptiveTrainingJob"] = "AdaptiveTrainingJob"
    metadata: ObjectMeta
    spec: TrainingJobSpec
    status: TrainingJobStatus | None = None

    rules = name_rules(MAX_NAME)


def checkpoint_folder(namespace: str | None, job: str) -> str:
    """Where a job's files are, relative to its checkpoint volume or URI."""
    return f"{namespace or 'default'}.{job}"


def checkpoint_uri(checkpoint: Checkpoint | None, namespace: str | None, job: str) -> str | None:
    """Where a job's files are, if in a bucket."""
    if checkpoint is None or checkpoint.uri is None:
        return None
    return f"{checkpoint.uri}/{checkpoint_folder(namespace, job)}"
