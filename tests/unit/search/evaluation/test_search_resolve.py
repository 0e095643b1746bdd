"""What is wrong with a search is said before its first trial."""

import re
from typing import Any

import pytest
from adaptrain.errors import InvalidJob
from adaptrain.search.evaluation.parameters import check, resolve
from adaptrain_api.crd import SEARCH
from adaptrain_api.search.job import ArchitectureSearchSpec
from adaptrain_api.search.space import Parameter

from tests.unit.api.test_api_rules import smallest
from tests.unit.search.test_search_dispatch import spec as function


def training(**given: Any) -> ArchitectureSearchSpec:
    return ArchitectureSearchSpec.model_validate(smallest(SEARCH)["spec"] | given)


@pytest.mark.parametrize(
    ("parameter", "words"),
    [
        ({"name": "phases[0].optimizer.lerningRate", "values": [1]}, "phases[0].optimizer.lerningRate: unknown field"),
        ({"name": "phases[1].name", "values": ["a"]}, "phases[1].name: the trial has no such item"),
        ({"name": "model.name.first", "values": ["a"]}, "first is not the field of an object in the trial"),
        (
            {"name": "phases[0].batch.size", "values": [8, 0]},
            "phases[0].batch.size = 0: phases[0].batch.size: must",
        ),
        ({"name": "width", "values": [8]}, "width: unknown field"),
    ],
)
def test_a_parameter_that_sets_nothing(parameter: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidJob, match=re.escape(words)):
        check(training(space={"parameters": [parameter]}))


def test_a_metric_that_no_trial_reports() -> None:
    with pytest.raises(InvalidJob, match=r"no trial reports accuracy; those that train report val/accuracy, "):
        check(training(objectives=[{"metric": "accuracy", "goal": "maximize"}]))


def test_what_is_right_passes() -> None:
    check(training())
    check(function())


def test_choices_find_their_places() -> None:
    chosen = {"phases[0].optimizer.learningRate": 0.5, "model.args.width": 4, "phases[0].stop.epochs": 3}
    trial, model = resolve(training().trial, None, chosen)
    assert trial.phases is not None
    assert (trial.phases[0].optimizer.learning_rate, trial.phases[0].stop.epochs) == (0.5, 3)
    assert model.args == {"width": 4}


def test_numbers_of_parameters() -> None:
    from adaptrain.search.spaces.parameters import values

    assert values(Parameter(name="a", min=8, max=64, step=8)) == (8, 16, 24, 32, 40, 48, 56, 64)
    assert values(Parameter(name="a", min=0.1, max=0.7, step=0.2)) == (0.1, 0.3, 0.5, 0.7)
    assert values(Parameter(name="a", min=1e-3, max=10, scale="log", count=5)) == (0.001, 0.01, 0.1, 1.0, 10.0)
    assert values(Parameter(name="a", values=[1, "1.5", "true", "text", "1"])) == (1, 1.5, True, "text")
