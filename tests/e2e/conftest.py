"""What tests on real nodes share."""

import os
from collections.abc import Iterator

import pytest

from tests.e2e.cluster_jobs import Site
from tests.e2e.installation import installed


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """An operator of this checkout on the local cluster: only there can nodes be stopped and processes be signalled."""
    if os.environ.get("CLUSTER", "local") != "local":
        pytest.skip("these tests stop nodes and signal processes, which takes the local cluster: CLUSTER=local")
    with installed() as made:
        yield made
