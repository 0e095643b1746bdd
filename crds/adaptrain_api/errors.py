"""What is wrong with a manifest, in sentences: the field as the user wrote it, the bound, and what to do."""

import difflib
import json
import re
from typing import Any

from pydantic import ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails

from adaptrain_api import base, components, objects
from adaptrain_api.crd import JOB, RESOURCES, Resource, structural
from adaptrain_api.search import goals, space
from adaptrain_api.training import checkpoints, containers, script, workers

WORDS = {
    base.QUANTITY: "must be a quantity such as 2, 500m or 4Gi",
    base.DNS_LABEL: "must hold only lower-case letters, digits and dashes, a letter or digit first and last",
    base.DNS_SUBDOMAIN: "must hold only lower-case letters, digits, dashes and dots, a letter or digit first and last",
    base.LABEL_VALUE: "must hold only letters, digits, '-', '_' and '.', a letter or digit first and last",
    containers.MOUNT_PATH: "must be an absolute path such as /data, without '.' and '..' and no slash at its end",
    components.COMPONENT: "must be a built-in's name, or module:callable from the image",
    containers.ENV_NAME: "must hold only letters, digits, '-', '_' and '.', no digit first",
    containers.IMAGE: "must be an image reference: printable ASCII without blanks",
    workers.CAPABILITY: "must be the name of a Linux capability such as IPC_LOCK, without CAP_",
    objects.MANAGER: "must be a controller's name with its domain, such as adaptrain.io/operator",
    goals.METRIC: "must be a name such as val/accuracy: a letter, then letters, digits, '-', '_', '.' and '/'",
    space.PARAMETER: "must be a field such as phases[0].optimizer.learningRate, or a plain name",
    checkpoints.SHA256: "must be 64 hexadecimal digits in lower case, as sha256sum prints them",
    checkpoints.RESUME_FROM: "must be a checkpoint's folder such as team.digits/step-0000001200.4294967299, or its last"
    " part alone",
    checkpoints.SECRET_KEY: "must hold only letters, digits, '-', '_' and '.'",
    script.PACKAGE: "must be a package of one version, such as timm==1.0.22",
    script.GIT_URL: "must be an http:// or https:// URL without credentials, which belong into secretRef",
}
"""What each pattern wants; a test keeps this complete."""

PLAIN = {
    "missing": "is required",
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be a string",
    "string_unicode": "must be valid Unicode",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "list_type": "must be a list",
    "finite_number": "must be a finite number",
    "int_parsing_size": "must be an integer of at most 64 bits",
}
BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "less_than_equal": ("at most", "le"),
    "greater_than": ("greater than", "gt"),
    "less_than": ("less than", "lt"),
}


def explain(error: ValidationError) -> str:
    """One line for each mistake, such as ``spec.workers.min: must be at least 1 (got 0)``."""
    resource = next((one for one in RESOURCES if one.kind == error.title), JOB)
    lines = [line for details in error.errors(include_url=False) for line in _explain(details, resource)]
    return "\n".join(dict.fromkeys(lines))


def _explain(details: ErrorDetails, resource: Resource) -> list[str]:
    path, context = _path(details["loc"]), details.get("ctx", {})
    if details["type"] == "rule":
        return [f"{(path + where).lstrip('.') or resource.noun}: {message}" for where, message in context["broken"]]
    return [f"{path or resource.noun}: {_sentence(details, context, resource)}"]


def _path(loc: tuple[int | str, ...]) -> str:
    path = ""
    for step in loc:
        if isinstance(step, int):
            path += f"[{step}]"
        elif step == "[key]":
            path += " (key)"
        elif re.fullmatch(r"\w+", step):
            path += f".{step}"
        else:
            path += f"[{json.dumps(step, ensure_ascii=False)}]"
    return path.removeprefix(".")


def _sentence(details: ErrorDetails, context: dict[str, Any], resource: Resource) -> str:
    kind, got = details["type"], f" (got {_short(details['input'])})"
    if kind == "missing":
        return PLAIN[kind]
    if kind in PLAIN:
        hint = ""
        if kind == "string_type" and isinstance(details["input"], int | float):
            hint = ": put it in quotes"
        elif kind in ("int_type", "float_type") and _is_number(details["input"]):
            hint = ": leave out the quotes"
        return PLAIN[kind] + hint + got
    if kind in BOUNDS:
        words, key = BOUNDS[kind]
        return f"must be {words} {json.dumps(context[key]).removesuffix('.0')}{got}"
    match kind:
        case "extra_forbidden":
            return f"unknown field{_suggestion(details['loc'], resource)}"
        case "literal_error" | "enum":
            return f"must be {context['expected']}{got}"
        case "string_pattern_mismatch":
            return WORDS.get(context["pattern"], f"must match {context['pattern']}") + got
        case "string_too_long":
            return f"must have at most {context['max_length']} characters (got {len(details['input'])})"
        case "string_too_short":
            return "must not be empty"
        case "too_long":
            return f"must have at most {context['max_length']} entries (got {context['actual_length']})"
        case "too_short":
            return f"must have at least {context['min_length']} entries (got {context['actual_length']})"
        case "value_error":
            return f"{context['error']}{got}"
    return f"{details['msg']}{got}"


def _is_number(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[-+]?[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?", value) is not None


def _short(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _suggestion(loc: tuple[int | str, ...], resource: Resource) -> str:
    """The field that was probably meant: another spelling, or snake_case."""
    schema: dict[str, Any] = structural(resource.model)
    for step in loc[:-1]:
        schema = schema.get("items", {}) if isinstance(step, int) else schema.get("properties", {}).get(step, {})
    known, name = list(schema.get("properties", {})), str(loc[-1])
    close = [to_camel(name)] if to_camel(name) in known else difflib.get_close_matches(name, known, 1)
    if close:
        return f": did you mean {close[0]}?"
    return f": known here are {', '.join(known)}" if known else ""
