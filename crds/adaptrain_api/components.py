"""What is trained, and on what: built-ins, or what the image brings."""

from typing import Annotated

from pydantic import Field

from adaptrain_api.base import FreeForm, Model, Rule, Text

COMPONENT = r"^([a-z][a-z0-9_]*|[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*)$"

Component = Annotated[Text, Field(pattern=COMPONENT, max_length=253)]

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
