"""What is trained, and on what: built-ins, or what the image brings."""

from typing import Annotated

from pydantic import Field

from adaptrain_api.base import FreeForm, Model, Rule, Text

COMPONENT = r"^([a-z][a-z0-9_]*|[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*)$"

Component = Annotated[Text, Field(pattern=COMPONENT, max_length=253)]

ARGUMENTS = {
    "resnet": ("depth", "width", "groups", "dtype"),
    "mlp": ("width", "depth", "widths", "activation", "dtype"),
    "cnn": ("layers", "dtype"),
    "transformer": ("layers", "width", "patch", "dtype"),
    "nasbench201": ("cell", "cells", "width", "dtype"),
    "nasnet": ("normal", "reduce", "cells", "width", "dtype"),
    "darts": ("normal", "reduce", "cells", "width", "dtype"),
    "nasbenchgraph": ("structure", "layers", "width", "edges", "dtype"),
}
"""Of each built-in model, what ``model.args`` may hold. Their values are the model's to check."""
MODELS = tuple(ARGUMENTS)


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


def mistake(model: ModelSource | None) -> str | None:
    """What is wrong with a built-in model's arguments, as far as it is known without torch: the field, and what it may
    hold. The API server can't look into ``args``."""
    known = ARGUMENTS.get(model.name) if model is not None else None
    if model is None or known is None:
        return None
    unknown = next((name for name in model.args if name not in known), None)
    return None if unknown is None else f"spec.model.args.{unknown}: unknown; {model.name} takes {', '.join(known)}"
