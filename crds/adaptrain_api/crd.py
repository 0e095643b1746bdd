"""From a pydantic model to a CustomResourceDefinition.

Kubernetes takes a part of JSON schema that it calls structural: no references, one type per field, no unions. What
the models say and the structural schema cannot is refused here with the field's path, rather than dropped in silence.

    python -m adaptrain_api.crd            writes the YAML files
    python -m adaptrain_api.crd --check    fails when they differ from the models
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from adaptrain_api.objects import GROUP, VERSION
from adaptrain_api.search import job as searches
from adaptrain_api.training import job as jobs

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (ROOT / "crds", ROOT / "charts/adaptrain/files/crds")
"""The chart can only read files of its own, so that it holds a copy."""

Schema = dict[str, Any]

KEPT = {"type", "description", "default", "format", "pattern", "enum", "required", "minimum", "maximum"} | {
    f"{bound}{what}" for bound in ("min", "max") for what in ("Length", "Items", "Properties")
}
BOUNDS = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}
"""pydantic's own words, which it leaves where a validator of ours stands in front of the number's."""
FORMATS = {"date-time"}


@dataclass(frozen=True)
class Resource:
    """What a CRD says beside the schema."""

    model: type[BaseModel]
    noun: str
    """What a sentence calls it."""
    plural: str
    short: str
    columns: tuple[tuple[str, str, str, str], ...]
    """Of ``kubectl get``: name, type, path, meaning."""
    wide: tuple[tuple[str, str, str, str], ...]
    """Further ones of ``kubectl get -o wide``."""
    scale: bool = False

    @property
    def kind(self) -> str:
        return self.model.__name__


JOB = Resource(
    jobs.AdaptiveTrainingJob,
    "the job",
    jobs.PLURAL,
    "atj",
    (
        ("Phase", "string", ".status.phase", "What the job is doing."),
        ("Workers", "string", ".status.workers", "Workers ready/wanted."),
        ("Step", "integer", ".status.step", "Optimizer steps applied."),
        ("Metric", "string", ".status.metric", "The validation metric; of a complete job, that of the model."),
        ("ETA", "string", ".status.eta", "Time left, estimated."),
        ("Age", "date", ".metadata.creationTimestamp", "Time since the job was made."),
    ),
    (
        ("Epoch", "integer", ".status.epoch", "Passes over the training set that are complete."),
        ("Loss", "number", ".status.loss", "Training loss, mean of the last steps."),
        ("Goodput", "string", ".status.goodput", "Part of the time that was spent on steps that count."),
        ("Restarts", "integer", ".status.restarts", "Failures of the workers' own that were counted."),
        ("Search", "string", ".metadata.labels.adaptrain\\.io/search-name", "The search that the job is a part of."),
        (
            "Pods",
            "string",
            '.status.conditions[?(@.type=="PodsReady")].reason',
            "Why PodsReady is as it is.",
        ),
    ),
    scale=True,
)
SEARCH = Resource(
    searches.ArchitectureSearch,
    "the search",
    searches.PLURAL,
    "asearch",
    (
        ("Phase", "string", ".status.phase", "What the search is doing."),
        ("Evaluators", "string", ".status.evaluators", "Evaluators ready/wanted."),
        ("Trials", "string", ".status.progress", "Trials ended/wanted."),
        ("Best", "string", ".status.best", "The best trial's first objective."),
        ("Pareto", "integer", ".status.paretoSize", "Trials that no other one surpasses in every objective."),
        ("ETA", "string", ".status.eta", "Time left, estimated."),
        ("Age", "date", ".metadata.creationTimestamp", "Time since the search was made."),
    ),
    (
        ("Failed", "integer", ".status.trials.failed", "Trials that ended without values."),
        ("Job", "string", ".status.promotedJob", "The job that trains the winner."),
        (
            "Pods",
            "string",
            '.status.conditions[?(@.type=="PodsReady")].reason',
            "Why PodsReady is as it is.",
        ),
    ),
)
RESOURCES = (JOB, SEARCH)


class NotStructural(TypeError):
    """A model says something that a structural schema cannot."""


def structural(model: type[BaseModel]) -> Schema:
    """The structural schema of a model."""
    raw = model.model_json_schema()
    return _convert(raw, model.__name__, raw.get("$defs", {}), ())


def _convert(node: Schema, path: str, defs: Schema, inside: tuple[str, ...]) -> Schema:
    node, inside = _flatten(node, path, defs, inside)
    out: Schema = {}
    for name, value in node.items():
        match key := BOUNDS.get(name, name):
            case "title" | "$defs":
                pass
            case "description":
                out[key] = " ".join(value.split())
            case "default":
                # In full: the API server checks a default against the rules before it applies those inside it.
                if value is not None:
                    out[key] = _without_nulls(value)
            case "const":
                out["enum"] = [value]
            case "exclusiveMinimum" | "exclusiveMaximum":
                out[key.removeprefix("exclusive").lower()] = value
                out[key] = True
            case "properties":
                out[key] = {sub: _convert(at, f"{path}.{sub}", defs, inside) for sub, at in value.items()}
            case "items":
                out[key] = _convert(value, f"{path}[]", defs, inside)
            case "minLength" | "maxLength" if node.get("type") == "object":
                out[key.replace("Length", "Properties")] = value
            case "additionalProperties" if value is False:
                pass  # the API server prunes or refuses unknown fields by itself
            case "additionalProperties" if value is True:
                out["x-kubernetes-preserve-unknown-fields"] = True
            case "additionalProperties":
                out[key] = _convert(value, f"{path}[*]", defs, inside)
            case "propertyNames" if value == {"type": "string"}:
                pass
            case "format" if value not in FORMATS:
                raise NotStructural(f"{path}: format {value!r} is unknown to the API server")
            case _ if key in KEPT or key.startswith("x-kubernetes-"):
                out[key] = value
            case _:
                raise NotStructural(f"{path}: {key} has no place in a structural schema")
    if "x-kubernetes-preserve-unknown-fields" not in out and "x-kubernetes-int-or-string" not in out:
        if not isinstance(out.get("type"), str) or out["type"] == "null":
            raise NotStructural(f"{path}: needs exactly one type, not {out.get('type')!r}")
        if out["type"] == "object" and not {"properties", "additionalProperties"} & out.keys():
            raise NotStructural(f"{path}: an object needs properties, or has to preserve unknown fields")
        if out["type"] == "array" and "items" not in out:
            raise NotStructural(f"{path}: an array needs items")
    for key in out.get("x-kubernetes-list-map-keys", []):
        if key not in out["items"].get("required", []):
            raise NotStructural(f"{path}: list-map key {key} must be a required field")
    return out


def _flatten(node: Schema, path: str, defs: Schema, inside: tuple[str, ...]) -> tuple[Schema, tuple[str, ...]]:
    """Put what a reference or an Optional stands for in its place; what is said beside it has precedence.

    Optional needs no ``nullable``: without it the API server drops a null, as the models do.
    """
    while True:
        beside = {key: value for key, value in node.items() if key not in ("$ref", "anyOf")}
        if "$ref" in node:
            name = node["$ref"].removeprefix("#/$defs/")
            if name in inside:
                raise NotStructural(f"{path}: {name} contains itself")
            node, inside = {**defs[name], **beside}, (*inside, name)
        elif "anyOf" in node:
            options = [option for option in node["anyOf"] if option != {"type": "null"}]
            if len(options) != 1:
                raise NotStructural(f"{path}: a union of several types")
            node = {**options[0], **beside}
        else:
            return node, inside


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value


def custom_resource_definition(resource: Resource) -> Schema:
    """The CRD of one of our resources."""
    schema = structural(resource.model)
    plain = {name: {"type": "string"} for name in ("apiVersion", "kind")}
    # The API server owns metadata's schema. Rules about the name therefore stand at the root.
    schema["properties"] = {**plain, "metadata": {"type": "object"}} | {
        name: schema["properties"][name] for name in ("spec", "status")
    }
    schema["required"] = ["spec"]
    scale = {
        "specReplicasPath": ".spec.workers.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{resource.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "plural": resource.plural,
                "singular": resource.kind.lower(),
                "kind": resource.kind,
                "listKind": f"{resource.kind}List",
                "shortNames": [resource.short],
                "categories": ["adaptrain"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": [
                        dict(zip(("name", "type", "jsonPath", "description"), column, strict=True))
                        for column in resource.columns
                    ]
                    + [
                        dict(zip(("name", "type", "jsonPath", "description"), column, strict=True)) | {"priority": 1}
                        for column in resource.wide
                    ],
                    # kubectl get atj --field-selector status.phase=Failed (Kubernetes 1.31: KEP-4358).
                    "selectableFields": [{"jsonPath": ".status.phase"}, {"jsonPath": ".spec.suspend"}],
                    "subresources": {"status": {}} | ({"scale": scale} if resource.scale else {}),
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def render(resource: Resource) -> str:
    """The YAML file's text."""
    head = "# Generated from crds/adaptrain_api by: python -m adaptrain_api.crd\n"
    return head + yaml.dump(custom_resource_definition(resource), sort_keys=False, width=110, allow_unicode=True)


def main(check: bool) -> int:
    """Write the files, or tell which of them differ."""
    stale = []
    for resource in RESOURCES:
        text = render(resource)
        for folder in FOLDERS:
            path = folder / f"{GROUP}_{resource.plural}.yaml"
            if check and (not path.exists() or path.read_text() != text):
                stale.append(str(path.relative_to(ROOT)))
            elif not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
    if stale:
        print(f"out of date: {', '.join(stale)}; run python -m adaptrain_api.crd", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
