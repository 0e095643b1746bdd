"""Our models: each operation is there, counts as its paper says, and is trained. Architectures are such models."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from adaptrain.data.digits import digits
from adaptrain.errors import InvalidJob
from adaptrain.models import BUILT_IN, build_model
from adaptrain.models.cost import count_flops, count_parameters
from adaptrain.search.spaces.base import Space
from adaptrain.search.spaces.nasbench201 import NasBench201
from adaptrain_api.training import MODELS, ModelSource
from torch import nn

SPACES: list[Space] = [NasBench201(cells=1, width=4)]
CONVOLUTIONS = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|"
POOLS = "|avg_pool_3x3~0|+|skip_connect~0|none~1|+|none~0|none~1|skip_connect~2|"


def built(space: Space, architecture: tuple[int, ...], shape: tuple[int, ...] = (1, 8, 8)) -> nn.Module:
    named = space.model(architecture)
    torch.manual_seed(0)
    return BUILT_IN[named["name"]](shape=shape, classes=10, **named["args"])


def test_a_manifest_names_the_models_that_there_are() -> None:
    assert set(MODELS) == set(BUILT_IN)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
def test_every_choice_is_built_and_trained(space: Space) -> None:
    """Walks through all choices of all dimensions; all weights get a gradient."""
    rng = np.random.default_rng(0)
    x, y = digits().train.fetch(torch.arange(4))
    for choice in range(max(space.sizes)):
        architecture = tuple(min(choice, size - 1) for size in space.sizes)
        if not space.is_valid(architecture):
            architecture = space.random(rng)
        model = built(space, architecture)
        logits = model(x)
        assert logits.shape == (4, 10)
        F.cross_entropy(logits, y).backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        # A sample's logits depend on no other sample: elastic workers split batches anywhere.
        torch.testing.assert_close(model(x[1:3]), logits[1:3])


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
def test_architectures_of_one_key_are_models_of_one_cost(space: Space) -> None:
    rng = np.random.default_rng(1)
    seen: dict[Any, int] = {}
    for _ in range(40):
        one = space.random(rng)
        for other in (one, space.mutate(one, rng), space.crossover(one, space.random(rng), rng)):
            assert space.is_valid(other)
            count = count_parameters(built(space, other))
            assert seen.setdefault(space.key(other), count) == count


def test_nasbench201_counts_as_the_benchmark_says() -> None:
    """Its smallest and its largest network on CIFAR-10. The benchmark counts a multiplication and its addition once."""
    for cell, parameters, flops in ((POOLS, 73_306, 7.78e6), (CONVOLUTIONS, 1_531_546, 220.12e6)):
        model = BUILT_IN["nasbench201"](shape=(3, 32, 32), classes=10, cell=cell)
        assert count_parameters(model) == parameters
        assert count_flops(model, torch.zeros(3, 32, 32)) / 2 == pytest.approx(flops, rel=0.02)


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("nasbench201", {"cell": "|conv~0|"}, "'conv' in node 1 must be one of none, skip_connect"),
        ("nasbench201", {"cell": "|none~1|"}, "'none~1' must end in ~ and a node before node 1: ~0 to ~0"),
        ("nasbench201", {"cell": "none~0"}, "write node 1 as |operation~input|operation~input|, not 'none~0'"),
        ("nasbench201", {"cell": "|none~0|"}, "cell must have the edges |~0|+|~0|~1|+|~0|~1|~2|"),
        ("nasbench201", {"cell": CONVOLUTIONS, "cells": 0}, "cells must be an integer of at least 1, not 0"),
    ],
)
def test_a_wrong_argument_is_told_in_a_sentence(name: str, args: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidJob) as error:
        build_model(ModelSource(name=name, args=args), digits())
    assert says in str(error.value)
