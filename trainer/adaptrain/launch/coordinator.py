"""The coordinator of a job or of a search, as a program."""

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptrain_api.base import ALLOWED
from adaptrain_api.contracts.coordinator_api import CONTROL_PORT, EXIT_INVALID, HTTP_PORT
from adaptrain_api.search.job import ArchitectureSearch
from adaptrain_api.training.workers import PRIVILEGES

from adaptrain.config.manifest import read_job
from adaptrain.elastic.membership.coordinator import Coordinator
from adaptrain.errors import InvalidJob
from adaptrain.process.environment import path, required
from adaptrain.process.lifetime import configure_logging, die_with_parent

if TYPE_CHECKING:
    from adaptrain.search.coordinator import SearchCoordinator

# No torch here.


def main() -> None:
    """Serve until the job is done, as the environment says."""
    if (parent := os.environ.get("ADAPTRAIN_PARENT")) is not None:
        die_with_parent(int(parent))
    ALLOWED.update(PRIVILEGES)  # what the job may have, the operator has decided
    job = read_job(Path(required("ADAPTRAIN_JOB_FILE")))
    token = Path(required("ADAPTRAIN_TOKEN_FILE")).read_text().strip()
    number = int(required("ADAPTRAIN_COORDINATOR_NUMBER"))
    coordinator: Coordinator | SearchCoordinator
    if job.spec.search is None:
        namespace = job.metadata.namespace or "default"
        coordinator = Coordinator(number, token, job.spec.workers.min, namespace, job.metadata.name)
    else:
        coordinator = _search_coordinator(number, token, job.spec.search)
    control = int(os.environ.get("ADAPTRAIN_CONTROL_PORT", CONTROL_PORT))
    web = int(os.environ.get("ADAPTRAIN_HTTP_PORT", HTTP_PORT))
    asyncio.run(coordinator.run(os.environ.get("ADAPTRAIN_HOST", ""), control, web))


def _search_coordinator(number: int, token: str, search: dict[str, Any]) -> "SearchCoordinator":
    from adaptrain.search.coordinator import SearchCoordinator  # a job's coordinator does without

    volume = path("ADAPTRAIN_STORAGE_DIR")
    try:
        return SearchCoordinator(
            number, token, ArchitectureSearch.model_validate(search), volume, os.environ.get("ADAPTRAIN_STORAGE_URL")
        )
    except InvalidJob as error:
        logging.error("%s", error)
        sys.exit(EXIT_INVALID)


if __name__ == "__main__":
    configure_logging()
    main()
