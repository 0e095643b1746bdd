"""Reading manifests."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from adaptrain_api.errors import explain
from adaptrain_api.manifest import documents as read_documents
from adaptrain_api.search.job import ArchitectureSearch
from adaptrain_api.training.job import AdaptiveTrainingJob
from pydantic import ValidationError

from adaptrain.errors import InvalidJob

Resource = TypeVar("Resource", AdaptiveTrainingJob, ArchitectureSearch)


def read_job(path: Path, name: str | None = None) -> AdaptiveTrainingJob:
    """The AdaptiveTrainingJob in a YAML or JSON file: of several, the one of that name.

    Raises:
        InvalidJob: the file can't be read, holds no such job, or the job breaks a rule of the API.
    """
    return _read(path, AdaptiveTrainingJob, name)


def read_search(path: Path, name: str | None = None) -> ArchitectureSearch:
    """The same for an ArchitectureSearch."""
    return _read(path, ArchitectureSearch, name)


def _read(path: Path, kind: type[Resource], name: str | None) -> Resource:
    try:
        text = path.read_text()
        documents = [json.loads(text)] if path.suffix == ".json" else read_documents(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidJob(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidJob(f"{path}: not YAML: {error}") from error
    found = [_named(one) for one in _objects(documents) if one.get("kind") == kind.__name__]
    names = [_name(one) for one in found]
    if name is not None:
        found = [one for one in found if _name(one) == name]
    if len(found) != 1:
        which = f" named {name!r}" if name is not None else ""
        choice = f" ({', '.join(names)}): say which one with --name" if len(names) > 1 else ""
        raise InvalidJob(f"{path}: must hold one object of kind {kind.__name__}{which}, not {len(found)}{choice}")
    try:
        return kind.model_validate(found[0])
    except ValidationError as error:
        raise InvalidJob(f"{path}:\n{explain(error)}") from error


def _objects(documents: list[Any]) -> Iterator[dict[str, Any]]:
    """The objects of all documents; of a List, as kubectl reads it, its items."""
    for one in documents:
        if isinstance(one, dict) and one.get("kind") == "List" and isinstance(one.get("items"), list):
            yield from (item for item in one["items"] if isinstance(item, dict))
        elif isinstance(one, dict):
            yield one


def _named(one: dict[str, Any]) -> dict[str, Any]:
    """With a name: where the API server would make one up, a run on this machine has the same each time."""
    meta = one.get("metadata")
    if isinstance(meta, dict) and not meta.get("name") and isinstance(meta.get("generateName"), str):
        return one | {"metadata": meta | {"name": meta["generateName"].rstrip("-.")}}
    return one


def _name(one: dict[str, Any]) -> str:
    meta = one.get("metadata")
    return str(meta.get("name", "")) if isinstance(meta, dict) else ""
