"""Where a search looks: a space of architectures, and parameters of the user's own."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, WithJsonSchema

from adaptrain_api.base import FreeForm, Integer, ListMap, Model, Number, Rule, Rules, Text
from adaptrain_api.components import Component

PARAMETER = r"^[A-Za-z_][A-Za-z0-9_]*(\[[0-9]+\])?(\.[A-Za-z_][A-Za-z0-9_]*(\[[0-9]+\])?)*$"
TRAINED = ("nasbench201", "nasnet", "darts", "cnn", "mlp", "transformer", "nasbenchgraph")
"""Built-in spaces whose architectures are models that can be trained."""
UNTRAINED = ("topology",)
"""Those whose architectures are none."""
SPACES = (*TRAINED, *UNTRAINED)
"""All built-in spaces."""
MOST_VALUES, LONGEST_VALUE = 200, 253


def _scalar(value: object) -> str | int:
    fits = isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63
    if not fits and not (isinstance(value, str) and len(value) <= LONGEST_VALUE):
        raise ValueError("must be an integer, or else a string: put it in quotes")
    assert isinstance(value, int | str)
    return value


Scalar = Annotated[
    str | int,
    PlainValidator(_scalar),
    WithJsonSchema({"x-kubernetes-int-or-string": True, "maxLength": LONGEST_VALUE}),
    Rules(Rule(cel="type(self) == int || type(self) == string", message="must be an integer, or a string in quotes")),
]
"""A value of a parameter. A structural schema has no better word for several types."""


class Parameter(Model):
    """A choice beside the architecture: of some values, or of numbers between two bounds."""

    name: Annotated[
        Text,
        Field(
            pattern=PARAMETER,
            max_length=253,
            description="The field of the trial that it sets, such as phases[0].optimizer.learningRate or"
            " model.args.width; for a callable, one of its choices.",
        ),
    ]
    values: Annotated[
        list[Scalar] | None,
        Field(
            min_length=1,
            max_length=MOST_VALUES,
            description="These; or else min and max. What is no integer goes in quotes, and means what it would in"
            " YAML without them: a number, true, false, or text.",
        ),
    ] = None
    min: Annotated[Number | None, Field(description="Smallest number.")] = None
    max: Annotated[Number | None, Field(description="Largest number.")] = None
    step: Annotated[
        Number | None, Field(gt=0, description="From number to number; absent: count of them are equally far apart.")
    ] = None
    count: Annotated[Integer, Field(ge=2, le=MOST_VALUES, description="How many numbers, if there is no step.")] = 16
    scale: Annotated[
        Literal["linear", "log"], Field(description="log: equally far apart means by the same factor.")
    ] = "linear"

    rules = (
        Rule(
            cel="has(self.values) ? !has(self.min) && !has(self.max) : has(self.min) && has(self.max)",
            message="a parameter needs values, or else min and max",
            check=lambda self: (
                (self.min is None and self.max is None)
                if self.values is not None
                else (self.min is not None and self.max is not None)
            ),
        ),
        Rule(
            cel="!has(self.min) || !has(self.max) || self.min < self.max",
            message="min must be less than max: change one of them",
            check=lambda self: self.min is None or self.max is None or self.min < self.max,
            path=".min",
        ),
        Rule(
            cel="!has(self.min) || self.scale == 'linear' || self.min > 0.0",
            message="a parameter on a log scale must be greater than 0: raise min, or use scale linear",
            check=lambda self: self.min is None or self.scale == "linear" or self.min > 0,
            path=".min",
        ),
        Rule(
            cel="!has(self.step) || (self.scale == 'linear' && !has(self.values))",
            message="step is for numbers on a linear scale: use count on a log scale, and neither beside values",
            check=lambda self: self.step is None or (self.scale == "linear" and self.values is None),
            path=".step",
        ),
        Rule(
            cel="!has(self.step) || !has(self.min) || !has(self.max)"
            f" || (self.max - self.min) / self.step < {float(MOST_VALUES)}",
            message=f"a parameter may have at most {MOST_VALUES} values: raise step",
            check=lambda self: (
                self.step is None
                or self.min is None
                or self.max is None
                or (self.max - self.min) / self.step < MOST_VALUES
            ),
            path=".step",
        ),
    )


class SearchSpace(Model):
    """Where to search: a space of architectures, parameters of your own, or both."""

    name: Annotated[
        Component | None,
        Field(description="A built-in space, or module:callable of one in the image; absent: parameters alone."),
    ] = None
    args: Annotated[FreeForm, Field(description="Keyword arguments of the space.")] = {}
    parameters: Annotated[
        list[Parameter],
        Field(max_length=64, description="What else is chosen for each trial: fields of its phases and model."),
        ListMap("name"),
    ] = []

    rules = (
        Rule(
            cel="has(self.name) || (has(self.parameters) && size(self.parameters) > 0)",
            message="space needs a name, or parameters, so that there is something to choose",
            check=lambda self: self.name is not None or bool(self.parameters),
        ),
        Rule(
            cel=f"!has(self.name) || self.name in [{', '.join(map(repr, SPACES))}] || self.name.contains(':')",
            message=f"space.name must be {', '.join(SPACES)}, or module:callable from the image",
            check=lambda self: self.name is None or self.name in SPACES or ":" in self.name,
            path=".name",
        ),
    )


def set_parameter(target: dict[str, Any], name: str, value: Any) -> None:
    """Set the field of a JSON object that a parameter's name says, such as ``phases[0].optimizer.learningRate``.

    Raises:
        ValueError: an index is beyond its list, or a field on the way is no object.
    """
    here: Any = target
    steps = [int(step[1:-1]) if step[0] == "[" else step for step in re.findall(r"[^.\[\]]+|\[[0-9]+\]", name)]
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        if isinstance(step, int) and (not isinstance(here, list) or step >= len(here)):
            raise ValueError(f"space.parameters: {name}: the trial has no such item")
        if isinstance(step, str) and not isinstance(here, dict):
            raise ValueError(f"space.parameters: {name}: {step} is not the field of an object in the trial")
        if following is None:
            here[step] = value
        else:
            here = here[step] if isinstance(step, int) else here.setdefault(step, {})
