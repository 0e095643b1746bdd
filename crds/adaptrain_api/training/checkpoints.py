"""Where a job's files are: what it saves, and what it starts from."""

import re
from typing import Annotated

from pydantic import Field

from adaptrain_api.base import Boolean, DnsSubdomain, Integer, Model, Rule, Text
from adaptrain_api.objects import LocalObjectReference

SHA256 = r"^[0-9a-f]{64}$"


class PersistentVolumeClaim(Model):
    """A claim that every worker can mount."""

    claim_name: Annotated[DnsSubdomain, Field(description="A claim in the job's namespace.")]


class CheckpointVolume(Model):
    """Storage that outlives the workers."""

    persistent_volume_claim: PersistentVolumeClaim


SECRET_KEY = r"^[-._a-zA-Z0-9]+$"


class SecretKey(Model):
    """One key of a Secret."""

    name: Annotated[DnsSubdomain, Field(description="A Secret in the job's namespace.")]
    key: Annotated[Text, Field(min_length=1, max_length=253, pattern=SECRET_KEY, description="Which of its keys.")]


RESUME_FROM = r"^([A-Za-z0-9][A-Za-z0-9._-]*/)?step-[0-9]+\.[0-9]+(-[0-9a-f]+)?$"
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

    resume_from: Annotated[
        Text | None,
        Field(
            max_length=1024,
            pattern=RESUME_FROM,
            description="A checkpoint to begin with if this job has none of its own, even if it is of another manifest:"
            " JOB-FOLDER/step-NUMBER.NUMBER in the same volume or bucket, or its name alone if it is in this job's"
            " folder. Model and optimizer must have the same tensors. Absent: a checkpoint of another manifest in this"
            " job's folder is refused.",
        ),
    ] = None
    key: Annotated[
        SecretKey | None,
        Field(
            description="A key that seals the checkpoints' manifests: a checkpoint that was not sealed with it is not"
            " used. Absent: who can write the storage can change what is loaded (but never run code)."
        ),
    ] = None

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


def checkpoint_folder(namespace: str | None, job: str) -> str:
    """Where a job's files are, relative to its checkpoint volume or URI."""
    return f"{namespace or 'default'}.{job}"


def checkpoint_uri(checkpoint: Checkpoint | None, namespace: str | None, job: str) -> str | None:
    """Where a job's files are, if in a bucket."""
    if checkpoint is None or checkpoint.uri is None:
        return None
    return f"{checkpoint.uri}/{checkpoint_folder(namespace, job)}"
