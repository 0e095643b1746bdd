"""A search in local processes."""

from pathlib import Path

import pytest
import yaml
from adaptrain.errors import InvalidJob
from adaptrain.local.search import run_search
from adaptrain_api.training.job import dump

from tests.unit.search.test_search_dispatch import spec


@pytest.mark.parametrize(("algorithm", "takes"), [("auto", "start, noisy"), ("predictor", "start")])
def test_wrong_arguments_are_refused_before_anything_starts(tmp_path: Path, algorithm: str, takes: str) -> None:
    wanted = dump(spec(algorithm={"name": algorithm, "args": {"noisi": True}}))
    search = {"apiVersion": "adaptrain.io/v1alpha1", "kind": "ArchitectureSearch", "metadata": {"name": "one"}}
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(search | {"spec": wanted}))
    with pytest.raises(InvalidJob, match=rf"algorithm\.args\.noisi: unknown; it takes {takes}"):
        run_search(tmp_path / "search.yaml", None, tmp_path / "out")
    assert not (tmp_path / "out").exists()
