"""Zero-cost proxies, beside what they are by hand."""

import math

import pytest
import torch
from adaptrain.models.registry import BUILT_IN
from adaptrain.search.evaluation.zero_cost import score
from torch import nn


def linear(weights: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(weights[0]), len(weights), bias=False)
    layer.weight = nn.Parameter(torch.tensor(weights))
    return layer


def test_naswot_counts_switches_that_two_inputs_share() -> None:
    model = nn.Sequential(linear([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), nn.ReLU(), nn.Linear(3, 2))
    batch = torch.tensor([[1.0, 1.0], [1.0, -2.0], [-2.0, 1.0]])  # on: all three; the first; the second
    kernel = torch.tensor([[3.0, 1.0, 1.0], [1.0, 3.0, 1.0], [1.0, 1.0, 3.0]])
    assert score("naswot", model, batch) == pytest.approx(math.log(float(torch.linalg.det(kernel))))
    assert score("naswot", model, torch.cat([batch, batch])) == -math.inf
    with pytest.raises(ValueError, match="naswot needs a model with ReLUs"):
        score("naswot", nn.Linear(2, 2), batch)


def test_synflow_is_the_flow_through_all_weights() -> None:
    """Of two layers of weights alone, each layer's θ · ∂R/∂θ add up to R itself: 1ᵀ|B||A|1."""
    model = nn.Sequential(linear([[1.0, -2.0], [3.0, 0.5]]), nn.LayerNorm(2), nn.ReLU(), linear([[-1.0, 2.0]]))
    before = [p.clone() for p in model.parameters()]
    flow = 1 * (1 + 2) + 2 * (3 + 0.5)
    assert score("synflow", model, torch.zeros(5, 2)) == pytest.approx(math.log(2 * flow))
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_costs_are_scores_too() -> None:
    model = BUILT_IN["mlp"](shape=(3,), classes=2, widths=[4])
    assert score("parameters", model, torch.zeros(5, 3)) == 4 * 4 + 5 * 2
    assert score("flops", model, torch.zeros(5, 3)) == 2 * (3 * 4 + 4 * 2)
    with pytest.raises(ValueError, match="proxy must be one of naswot, synflow, parameters, flops, not 'grasp'"):
        score("grasp", model, torch.zeros(5, 3))


def test_every_model_has_a_score() -> None:
    torch.manual_seed(0)
    for name in ("naswot", "synflow"):
        cell = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|avg_pool_3x3~1|nor_conv_1x1~2|"
        model = BUILT_IN["nasbench201"](shape=(1, 8, 8), classes=10, cell=cell, cells=1, width=4)
        assert math.isfinite(score(name, model, torch.rand(8, 1, 8, 8)))
