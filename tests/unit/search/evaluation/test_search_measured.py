"""What is measured of a trial's model beside training, or instead of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from adaptrain.data.digits import digits
from adaptrain.errors import InvalidJob
from adaptrain.search.evaluation.cost_metrics import LEAST, needs_training, proxies
from adaptrain.search.evaluation.training_trial import Training
from adaptrain_api.search.job import ArchitectureSearchSpec
from torch import nn

from tests.unit.api.test_api_rules import PHASE
from tests.unit.search.test_search_dispatch import spec

CELL = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|avg_pool_3x3~1|nor_conv_1x1~2|"


def wanted(*metrics: str, **given: Any) -> ArchitectureSearchSpec:
    trial = {"data": {"name": "digits"}, "phases": [PHASE | {"stop": {"steps": 2}}]}
    goals = [{"metric": metric, "goal": "maximize"} for metric in metrics]
    return spec(space={"name": "nasbench201"}, objectives=goals, trial=trial, **given)


def run(one: ArchitectureSearchSpec, folder: Path | None = None) -> tuple[dict[str, float], Training]:
    training = Training(one, folder)
    model = {"name": "nasbench201", "args": {"cell": CELL, "cells": 1, "width": 4}}
    return training.run({"model": model}, lambda step, metrics: None), training


def test_what_needs_no_training_gets_none(tmp_path: Path) -> None:
    found, training = run(wanted("synflow", "naswot", "parameters"), tmp_path)
    assert found.keys() == {"synflow", "naswot", "parameters"}
    assert not training.keeps, "weights that nothing was learned in"
    assert not list(tmp_path.iterdir())
    trained, training = run(wanted("val/accuracy", "naswot", "synflow"), tmp_path)
    assert trained.keys() >= {"val/accuracy", "naswot", "synflow"}
    assert {name: trained[name] for name in ("naswot", "synflow")} == {
        name: found[name] for name in ("naswot", "synflow")
    }, "they are of the weights before training"
    assert training.keeps
    assert training.keep(1) is not None


@pytest.mark.parametrize(
    ("one", "needed"),
    [
        (wanted("naswot"), False),
        (wanted("latency", "flops", constraints=[{"metric": "synflow", "atLeast": 0}]), False),
        (wanted("naswot", constraints=[{"metric": "val/loss", "atMost": 1}]), True),
        (wanted("naswot", promote={"job": {}, "gate": {"metric": "val/accuracy", "atLeast": 0.5}}), True),
        (wanted("naswot", promote={"job": {}, "gate": {"metric": "parameters", "atMost": 9}}), False),
    ],
)
def test_training_is_needed_for_all_that_only_a_trained_model_has(one: ArchitectureSearchSpec, needed: bool) -> None:
    assert needs_training(one) is needed


def test_what_the_gate_names_is_measured() -> None:
    gated = wanted("naswot", promote={"job": {}, "gate": {"metric": "parameters", "atMost": 9}})
    assert run(gated)[0].keys() == {"naswot", "parameters"}


def relus(count: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, count), nn.Dropout(0.5), nn.ReLU(), nn.Linear(count, 10))


def test_a_proxy_of_a_hopeless_model_is_finite() -> None:
    """Two inputs switch its only ReLU alike."""
    assert proxies(relus(1), digits(), 0, ["naswot"]) == {"naswot": LEAST}


def test_a_model_is_left_as_it_was_and_scored_on_the_same_samples() -> None:
    model = relus(256)
    before = [p.clone() for p in model.parameters()]
    one, again = (proxies(model, digits(), 3, ["naswot"]) for _ in range(2))
    assert one == again != proxies(model, digits(), 4, ["naswot"])
    assert one["naswot"] > LEAST
    assert model.training
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_a_proxy_that_finds_nothing_to_look_at_says_so() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(InvalidJob, match="objectives and constraints: naswot needs a model with ReLUs"):
        proxies(model, digits(), 0, ["naswot"])
