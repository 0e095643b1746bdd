"""What every model of the API shares: strictness, camelCase names, and rules that exist twice (CEL and Python)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, WithJsonSchema, model_validator
from pydantic.alias_generators import to_camel


@dataclass(frozen=True)
class Rule:
    """A rule over several fields: ``cel`` runs in the API server, ``check`` is its Python twin, ``message`` is shared.

    A transition rule compares with the object before the change (``oldSelf``); it has no twin, since only the API
    server knows both.
    """

    cel: str
    message: str
    check: Callable[[Any], bool] | None = None
    path: str = ""
    """The field to blame, relative to the model and starting with a dot (CRD ``fieldPath``); empty: the model itself."""


class Model(BaseModel):
    """Unknown fields are refused, instances are frozen, and names are camelCase in YAML and snake_case in Python."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=to_camel, validate_by_name=True, validate_by_alias=True
    )

    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _keep_rules(self) -> "Model":
        broken = [rule.message for rule in self.rules if rule.check is not None and not rule.check(self)]
        if broken:
            raise ValueError("; ".join(broken))
        return self


def _integral(value: object) -> object:
    # The API server takes 2.0 for an integer, and takes neither "2" nor true; pydantic's defaults differ on the latter.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be an integer")
    return value


def _number(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a number")
    return value


def _boolean(value: object) -> object:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


Integer: TypeAlias = Annotated[int, BeforeValidator(_integral)]
Number: TypeAlias = Annotated[float, BeforeValidator(_number)]
Boolean: TypeAlias = Annotated[bool, BeforeValidator(_boolean)]

FreeForm: TypeAlias = Annotated[
    dict[str, Any], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})
]
"""An object whose inside is not ours to check: arguments of a user's callable, or a Kubernetes type passed through."""
