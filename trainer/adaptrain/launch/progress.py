"""The progress of a job, for people who look from inside one of its pods."""

import os
from pathlib import Path

from adaptrain_api.contracts.coordinator_api import HTTP_PORT
from adaptrain_api.contracts.proof import Caller

from adaptrain.process.environment import required
from adaptrain.rpc.client import ask
from adaptrain.rpc.ports import split


def main() -> None:
    """Print the progress that the coordinator of this pod, or of another one of the same job, has to tell."""
    token = Path(required("ADAPTRAIN_TOKEN_FILE")).read_text().strip()
    host = split(os.environ["ADAPTRAIN_COORDINATOR"])[0] if "ADAPTRAIN_COORDINATOR" in os.environ else "localhost"
    print(ask((host, HTTP_PORT), Caller(token), "/progress").decode())
