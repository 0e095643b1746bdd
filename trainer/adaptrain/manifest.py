"""Reading a job's manifest."""

import json
from pathlib import Path

import yaml
from adaptrain_api.errors import explain
from adaptrain_api.manifest import documents as read_documents
from adaptrain_api.training import AdaptiveTrainingJob
from pydantic import ValidationError

from adaptrain.errors import InvalidJob


def read_job(path: Path) -> AdaptiveTrainingJob:
    """The AdaptiveTrainingJob in a YAML or JSON file; of several documents, the only one of that kind.

    Raises:
        InvalidJob: the file can't be read, holds no such job, or the job breaks a rule of the API.
    """
    try:
        text = path.read_text()
        documents = [json.loads(text)] if path.suffix == ".json" else list(read_documents(text))
    except OSError as error:
        raise InvalidJob(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise InvalidJob(f"{path}: not YAML: {error}") from error
    jobs = [d for d in documents if isinstance(d, dict) and d.get("kind") == "AdaptiveTrainingJob"]
    if len(jobs) != 1:
        raise InvalidJob(f"{path}: must hold one object of kind AdaptiveTrainingJob, not {len(jobs)}")
    try:
        return AdaptiveTrainingJob.model_validate(jobs[0])
    except ValidationError as error:
        raise InvalidJob(f"{path}:\n{explain(error)}") from error
