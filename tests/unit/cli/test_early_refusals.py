"""What a worker would refuse is refused before any pod or process is made."""

import inspect
import json
from pathlib import Path

import pytest
from adaptrain.errors import InvalidJob
from adaptrain.local.run import run_manifest
from adaptrain.models.registry import BUILT_IN
from adaptrain_api.components import ARGUMENTS

from tests.support.manifests import small_training
from tests.support.operator_world import World

WRONG = {"model": {"name": "resnet", "args": {"depth": 8, "widht": 4}}}
WORDS = "spec.model.args.widht: unknown; resnet takes depth, width, groups, dtype"


def test_the_arguments_of_built_in_models_are_those_that_they_take() -> None:
    taken = {name: tuple(inspect.signature(build).parameters) for name, build in BUILT_IN.items()}
    assert {
        name: tuple(one for one in given if one not in ("shape", "classes")) for name, given in taken.items()
    } == ARGUMENTS


def test_the_operator_makes_no_pod_for_a_model_with_unknown_arguments() -> None:
    world = World(**WRONG, image=None)
    plan = world.step()
    assert (plan.create, plan.apply) == ([], [])
    assert world.condition("Failed") == ("True", "InvalidManifest", WORDS)


def test_an_image_of_the_users_may_know_more() -> None:
    assert World(**WRONG, image="mine:2").step().create
    running = World(**WRONG, image=None)
    running.status = running.status.model_copy(update={"next_worker": 2})
    assert running.step().create, "a job that runs is not ended by an operator that knows less"


def test_adaptrain_run_starts_nothing(tmp_path: Path) -> None:
    body = {
        "apiVersion": "adaptrain.io/v1alpha1",
        "kind": "AdaptiveTrainingJob",
        "metadata": {"name": "job"},
        "spec": {**small_training(), **WRONG},
    }
    (tmp_path / "job.yaml").write_text(json.dumps(body))
    with pytest.raises(InvalidJob, match=r"^spec\.model\.args\.widht: unknown"):
        run_manifest(tmp_path / "job.yaml", None, tmp_path / "out")
    assert not (tmp_path / "out").exists()
