"""Types of phases: the one place where a new one is named."""

from adaptrain.config.imports import call_with_args, import_callable
from adaptrain.errors import InvalidJob
from adaptrain.phases.base import Context, Phase
from adaptrain.phases.supervised import Supervised

TYPES: dict[str, type[Phase]] = {"supervised": Supervised}


def build_phase(context: Context) -> Phase:
    """The phase that a manifest describes.

    Raises:
        InvalidJob: there is no such class, or it does not take these arguments.
    """
    custom, field = context.spec.custom, f"{context.path}.custom"
    if custom is None:
        return TYPES[context.spec.type](context)
    kind = import_callable(field, custom.name)
    if not (isinstance(kind, type) and issubclass(kind, Phase)):
        raise InvalidJob(f"{field}.name: {custom.name} is no subclass of adaptrain.phases.base.Phase")
    return call_with_args(field, kind, custom.args, context=context)
