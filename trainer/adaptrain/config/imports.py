"""Finding and calling what a manifest names: ``module:callable`` with keyword arguments."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from adaptrain.errors import InvalidJob

T = TypeVar("T")


def import_callable(field: str, name: str) -> Callable[..., Any]:
    """The callable that ``module:callable`` names.

    Raises:
        InvalidJob: the module or the name isn't there.
    """
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise  # the module is there, and it is its own import that fails
        raise InvalidJob(
            f"{field}.name: no module {error.name!r} in this image: install it there, or correct the name"
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        raise InvalidJob(f"{field}.name: {module_name} has no callable {attribute!r}")
    return found  # type: ignore[no-any-return]


def call_with_args(field: str, target: Callable[..., T], args: dict[str, Any], **own: Any) -> T:
    """Call with a manifest's ``args``, and with ``own`` arguments that the manifest may not give.

    Raises:
        InvalidJob: an argument is unknown, missing, or refused by the callable (which raises ValueError).
    """
    signature = inspect.signature(target)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    takes = [name for name in signature.parameters if name not in own]
    for name in args:
        if name in own or (name not in takes and not takes_any):
            raise InvalidJob(f"{field}.args.{name}: unknown; it takes {', '.join(takes) or 'no arguments'}")
    try:
        signature.bind(**own, **args)
    except TypeError as error:
        raise InvalidJob(f"{field}.args: {error}") from error
    try:
        return target(**own, **args)
    except ValueError as error:
        raise InvalidJob(f"{field}.args: {error}") from error
