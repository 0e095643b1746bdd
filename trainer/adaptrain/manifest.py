"""Reading manifests."""

import json
from pathlib import Path
from typing import TypeVar

import yaml
from adaptrain_api.errors import explain
from adaptrain_api.manifest import documents as read_documents
from adaptrain_api.search import ArchitectureSearch
from adaptrain_api.training import AdaptiveTrainingJob
from pydantic import ValidationError

from adaptrain.errors import InvalidJob

Resource = TypeVar("Resource", AdaptiveTrainingJob, ArchitectureSearch)


def read_job(path: Path) -> AdaptiveTrainingJob:
    """The AdaptiveTrainingJob in a YAML or JSON file; of several documents, the only one of that kind.

    Raises:
        InvalidJob: the file can't be read, holds no such job, or the job breaks a rule of the API.
    """
    return _read(path, AdaptiveTrainingJob)


def read_search(path: Path) -> ArchitectureSearch:
    """The same for an ArchitectureSearch."""
    return _read(path, ArchitectureSearch)


def _read(path: Path, kind: type[Resource]) -> Resource:
    try:
        text = path.read_text()
        documents = [json.loads(text)] if path.suffix == ".json" else list(read_documents(text))
    except OSError as error:
        raise InvalidJob(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise InvalidJob(f"{path}: not YAML: {error}") from error
    found = [d for d in documents if isinstance(d, dict) and d.get("kind") == kind.__name__]
    if len(found) != 1:
        raise InvalidJob(f"{path}: must hold one object of kind {kind.__name__}, not {len(found)}")
    try:
        return kind.model_validate(found[0])
    except ValidationError as error:
        raise InvalidJob(f"{path}:\n{explain(error)}") from error
