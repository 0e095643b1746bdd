"""How a model is trained."""

from typing import Annotated, Literal

from pydantic import Field

from adaptrain_api.base import Boolean, DnsLabel, FreeForm, Integer, ListMap, Model, Number, Rule
from adaptrain_api.bounds import MOST_PHASES
from adaptrain_api.components import Component


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


class Custom(Model):
    """A phase of your own: a class in the image."""

    name: Annotated[
        Component, Field(description="module:Class of a subclass of adaptrain.phases.base.Phase in the image.")
    ]
    args: Annotated[FreeForm, Field(description="Keyword arguments that the class takes.")] = {}

    rules = (
        Rule(
            cel="self.name.contains(':')",
            message="custom.name must be module:Class from the image",
            check=lambda self: ":" in self.name,
            path=".name",
        ),
    )


BLOCKS = {"supervised": None, "custom": "custom"}
"""For each type of a phase the field that holds what only that type takes; None: it takes nothing else."""


def _belongs(kind: str, block: str) -> Rule:
    return Rule(
        cel=f"has(self.{block}) == (self.type == '{kind}')",
        message=f"a phase of type {kind} needs {block}, and no other phase takes it",
        check=lambda self: (getattr(self, block) is not None) == (self.type == kind),
        path=f".{block}",
    )


class Phase(Model):
    """One part of the training, with its own optimizer and end; it begins with the weights that the one before it left.

    What every type takes stands here; what only one type takes stands in the field of its name (a discriminated union,
    as the Kubernetes API conventions have it).
    """

    name: Annotated[DnsLabel, Field(description="A name of your choice.")]
    type: Annotated[
        Literal["supervised", "custom"],
        Field(
            description="What the phase does. supervised: minimize cross-entropy on labelled samples. custom: what your"
            " own class says."
        ),
    ]
    custom: Custom | None = None
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

    rules = tuple(_belongs(kind, block) for kind, block in BLOCKS.items() if block is not None)


Phases = Annotated[
    list[Phase],
    Field(
        min_length=1,
        max_length=MOST_PHASES,
        description="How the model is trained: one phase after the other, each with the weights of the one before.",
    ),
    ListMap("name"),
]
