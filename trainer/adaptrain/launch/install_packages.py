"""The packages of a script, installed into a pod before it begins."""

import logging
import sys
from pathlib import Path

from adaptrain_api.contracts.coordinator_api import EXIT_INVALID

from adaptrain.errors import InvalidJob
from adaptrain.process.environment import path, required
from adaptrain.process.packages import install
from adaptrain.process.result import WORDS_LIMIT, ending


def main() -> None:
    """Install a script's packages into a pod; its termination message is why they can't be."""

    try:
        install(
            required("ADAPTRAIN_PACKAGES").split(),
            Path(required("ADAPTRAIN_PACKAGES_DIR")),
            path("ADAPTRAIN_PACKAGE_CACHE"),
        )
    except (InvalidJob, OSError) as error:
        Path(required("ADAPTRAIN_TERMINATION_LOG")).write_text(ending(str(error), WORDS_LIMIT))
        logging.error("%s", error)
        sys.exit(EXIT_INVALID if isinstance(error, InvalidJob) else 1)
