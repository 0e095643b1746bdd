"""The reference pages of our resources, from the schemas that the API server enforces.

python -m adaptrain_api.reference            writes the pages
python -m adaptrain_api.reference --check    fails when they differ from the models
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

from adaptrain_api.crd import RESOURCES, ROOT, Resource, custom_resource_definition
from adaptrain_api.errors import WORDS

FOLDER = ROOT / "docs/reference"
HEAD = """<!-- Generated from crds/adaptrain_api by: python -m adaptrain_api.reference -->
# {kind}

`apiVersion: adaptrain.io/v1alpha1`, `kind: {kind}`, short name `{short}`. {description}

Unknown fields are refused. A field that is `null` counts as absent. `[]` marks the items of a list, `[*]` the values
of a map. A list "by name" has each name once, and server-side apply merges it item by item.
"""


def render(resource: Resource) -> str:
    """A page."""
    root = custom_resource_definition(resource)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    lines = [HEAD.format(kind=resource.kind, short=resource.short, description=root["description"])]
    for title, name in (("Spec: what you want", "spec"), ("Status: what is", "status")):
        lines += [f"## {title}", "", "| field | type | default | bounds | meaning |", "| --- | --- | --- | --- | --- |"]
        required = name in root["required"]
        lines += [_row(*field) for field in _fields(root["properties"][name], name, required)]
        lines.append("")
    lines += ["## Rules", "", "What holds beyond a single field, and the message of the refusal.", ""]
    lines += ["| where | message |", "| --- | --- |"]
    lines += [f"| `{path or resource.noun}` | {_cell(message)} |" for path, message in dict.fromkeys(_rules(root, ""))]
    return "\n".join(lines) + "\n"


def _fields(schema: dict[str, Any], path: str, required: bool) -> Iterator[tuple[str, dict[str, Any], bool]]:
    yield path, schema, required
    for name, sub in schema.get("properties", {}).items():
        yield from _fields(sub, f"{path}.{name}", name in schema.get("required", ()))
    for key, mark in (("items", "[]"), ("additionalProperties", "[*]")):
        if "properties" in schema.get(key, {}):
            for name, sub in schema[key]["properties"].items():
                yield from _fields(sub, f"{path}{mark}.{name}", name in schema[key].get("required", ()))


def _rules(schema: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    for rule in schema.get("x-kubernetes-validations", ()):
        if rule["rule"] != "self == int(self)":  # the type column says it
            yield f"{path}{rule.get('fieldPath', '')}", rule["message"]
    for name, sub in schema.get("properties", {}).items():
        yield from _rules(sub, f"{path}.{name}".removeprefix("."))
    for key, mark in (("items", "[]"), ("additionalProperties", "[*]")):
        if key in schema:
            yield from _rules(schema[key], f"{path}{mark}")


def _row(path: str, schema: dict[str, Any], required: bool) -> str:
    default = f"`{json.dumps(schema['default'])}`" if "default" in schema else "required" if required else ""
    meaning = schema.get("description") or schema.get("items", {}).get("description", "")
    if path == "spec.workers":
        default = "all defaults"
    return f"| `{path}` | {_type(schema)} | {default} | {_cell(_bounds(schema))} | {_cell(meaning)} |"


def _type(schema: dict[str, Any]) -> str:
    if "x-kubernetes-int-or-string" in schema:
        return "integer or string"
    if "additionalProperties" in schema:
        return f"map of {_type(schema['additionalProperties'])}"
    if schema.get("type") == "array":
        keys = ", ".join(schema.get("x-kubernetes-list-map-keys", ()))
        return f"list of {_type(schema['items'])}" + (f", by {keys}" if keys else "")
    if schema.get("format") == "date-time":
        return "time"
    return "any object" if schema.get("x-kubernetes-preserve-unknown-fields") else str(schema["type"])


def _bounds(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "additionalProperties" in schema:
        inner = _bounds(schema["additionalProperties"])
        return f"at most {schema['maxProperties']} entries" + (f"; values: {inner}" if inner else "")
    found = []
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None:
        found.append(f"{'>' if schema.get('exclusiveMinimum') else '≥'} {low}")
    if high is not None:
        found.append(f"{'<' if schema.get('exclusiveMaximum') else '≤'} {high}")
    if "pattern" in schema:
        found.append(WORDS.get(schema["pattern"], f"`{schema['pattern']}`"))
    if "maxLength" in schema:
        found.append(f"at most {schema['maxLength']} characters")
    if "minItems" in schema:
        found.append(f"at least {schema['minItems']}")
    if "maxItems" in schema:
        found.append(f"at most {schema['maxItems']}")
    return "; ".join(found)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main(check: bool) -> int:
    """Write the pages, or tell that they differ."""
    stale = []
    for resource in RESOURCES:
        page, text = FOLDER / f"{resource.kind.lower()}.md", render(resource)
        if not check:
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(text)
        elif not page.exists() or page.read_text() != text:
            stale.append(str(page.relative_to(ROOT)))
    if stale:
        print(f"out of date: {', '.join(stale)}; run python -m adaptrain_api.reference", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
