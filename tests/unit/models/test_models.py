"""Our models: each operation is there, counts as its paper says, and is trained. Architectures are such models."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from adaptrain.data.digits import digits
from adaptrain.errors import InvalidJob
from adaptrain.models.cost import count_flops, count_parameters
from adaptrain.models.registry import BUILT_IN, build_model
from adaptrain.search.spaces.base import Space
from adaptrain.search.spaces.cells import Darts, Nasnet
from adaptrain.search.spaces.chains import Cnn, Mlp, Transformer
from adaptrain.search.spaces.nasbench201 import NasBench201
from adaptrain.search.spaces.nasbenchgraph import NasBenchGraph
from adaptrain_api.components import MODELS, ModelSource
from torch import nn

SPACES: list[Space] = [NasBench201(cells=1, width=4), NasBenchGraph(width=8), Cnn(), Mlp(), Transformer()]
STACKS: list[Space] = [Nasnet(cells=3, width=4), Darts(cells=3, width=4)]
CONVOLUTIONS = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|"
SKIPS = "|skip_connect~0|skip_connect~1|"
POOLS = "|avg_pool_3x3~0|+|skip_connect~0|none~1|+|none~0|none~1|skip_connect~2|"


def built(space: Space, architecture: tuple[int, ...], shape: tuple[int, ...] = (1, 8, 8)) -> nn.Module:
    named = space.model(architecture)
    torch.manual_seed(0)
    return BUILT_IN[named["name"]](shape=shape, classes=10, **named["args"])


def test_a_manifest_names_the_models_that_there_are() -> None:
    assert set(MODELS) == set(BUILT_IN)


@pytest.mark.parametrize("space", SPACES + STACKS, ids=lambda space: type(space).__name__)
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
    for _ in range(15):
        one = space.random(rng)
        for other in (one, space.mutate(one, rng), space.crossover(one, space.random(rng), rng)):
            assert space.is_valid(other)
            count = count_parameters(built(space, other))
            assert seen.setdefault(space.key(other), count) == count


def test_nasbench201_counts_as_the_benchmark_says() -> None:
    """Its smallest and its largest network on CIFAR-10. The benchmark counts a multiplication and its addition once."""
    for cell, parameters, flops in ((POOLS, 73_306, 7.78e6), (CONVOLUTIONS, 1_531_546, 220.12e6)):
        with torch.device("meta"):  # nothing is computed
            model, image = BUILT_IN["nasbench201"](shape=(3, 32, 32), classes=10, cell=cell), torch.zeros(3, 32, 32)
        assert count_parameters(model) == parameters
        assert count_flops(model, image) / 2 == pytest.approx(flops, rel=0.02)


def test_darts_counts_as_its_code_says() -> None:
    """The published cells (DARTS_V2): 3.349342 million parameters on CIFAR-10."""
    normal = "|sep_conv_3x3~0|sep_conv_3x3~1|+|sep_conv_3x3~0|sep_conv_3x3~1|+|sep_conv_3x3~1|skip_connect~0|"
    reduce = "|max_pool_3x3~0|max_pool_3x3~1|+|skip_connect~2|max_pool_3x3~1|+|max_pool_3x3~0|skip_connect~2|"
    cells = {
        "normal": f"{normal}+|skip_connect~0|dil_conv_3x3~2|",
        "reduce": f"{reduce}+|skip_connect~2|max_pool_3x3~1|",
    }
    with torch.device("meta"):
        model = BUILT_IN["darts"](shape=(3, 32, 32), classes=10, cells=20, width=36, **cells)
    assert count_parameters(model) == 3_349_342


def test_a_nasnet_cell_joins_what_feeds_no_other_block() -> None:
    """Parameters by hand: both inputs brought to 4 channels, and what the blocks add."""
    cells = {"normal": "|conv_3x3~0|identity~1|+|avg_pool_3x3~2|conv_1x3_3x1~0|+|conv_1x1~0|max_pool_7x7~1|"}
    model = BUILT_IN["nasnet"](shape=(1, 8, 8), classes=10, cells=3, width=4, reduce="|identity~0|identity~1|", **cells)
    first, second, last = model.cells
    assert count_parameters(first) == 2 * (12 * 4 + 8) + (9 * 16 + 8) + (3 * 16 + 3 * 16 + 8) + (16 + 8)
    # Two blocks of 4 channels are joined. The second cell reduces to 8, the last one to 16.
    assert count_parameters(second) == (12 + 8) * 8 + 2 * 16 + 2 * (8 * 8 + 16)
    assert count_parameters(last) == (8 + 8) * 16 + 2 * 32 + 2 * (16 * 16 + 32)
    assert model.head[2].in_features == 16


def test_chains_have_the_layers_that_they_are_given() -> None:
    """Parameters by hand: weights, and two for each unit or channel of a bias or a normalization."""
    layers = [{"width": 8, "kernel": 5, "skip": True}, {"width": 8, "skip": True}, {"width": 16, "stride": 2}]
    cnn = BUILT_IN["cnn"](shape=(1, 8, 8), classes=10, layers=layers)
    weights = (25 * 8 + 8) + 9 * 8 * 8 + 9 * 8 * 16  # the first one's shortcut changes the width, the second one's none
    assert count_parameters(cnn) == weights + 2 * (8 + 8 + 16) + 16 * 10 + 10
    pixels = 64 * (25 * 8 + 8 + 9 * 8 * 8) + 16 * 9 * 8 * 16
    assert count_flops(cnn, torch.zeros(1, 8, 8)) == 2 * (pixels + 16 * 10)
    mlp = BUILT_IN["mlp"](shape=(1, 8, 8), classes=10, widths=[32, 16], activation="tanh")
    assert count_parameters(mlp) == 65 * 32 + 33 * 16 + 17 * 10
    assert sum(isinstance(m, nn.Tanh) for m in mlp.modules()) == 2
    kept = BUILT_IN["mlp"](shape=(1, 8, 8), classes=10, width=20, depth=3)
    assert count_parameters(kept) == 65 * 20 + 2 * 21 * 20 + 21 * 10


def test_a_transformer_is_torchs_own() -> None:
    """The same weights in torch's encoder layer give the same."""
    model = BUILT_IN["transformer"](shape=(6, 5), classes=3, width=8, layers=[{"heads": 2, "feed_forward": 12}])
    theirs = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    ours = model.layers[0]
    pairs = [("self_attn.in_proj_", ours.project), ("self_attn.out_proj.", ours.merge), ("norm1.", ours.norm1)]
    pairs += [("norm2.", ours.norm2), ("linear1.", ours.feed_forward[0]), ("linear2.", ours.feed_forward[2])]
    theirs.load_state_dict({f"{name}{part}": t for name, m in pairs for part, t in m.state_dict().items()})
    x = torch.rand(2, 6, 8)
    torch.testing.assert_close(ours(x), theirs(x))
    assert model(torch.rand(2, 6, 5)).shape == (2, 3)
    shuffled = torch.rand(1, 6, 5)
    assert not torch.allclose(model(shuffled), model(shuffled.flip(1)))


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("nasbench201", {"cell": "|conv~0|"}, "'conv' in node 1 must be one of none, skip_connect"),
        ("nasbench201", {"cell": "|none~1|"}, "'none~1' must end in ~ and a node before node 1: ~0 to ~0"),
        ("nasbench201", {"cell": "none~0"}, "write node 1 as |operation~input|operation~input|, not 'none~0'"),
        ("nasbench201", {"cell": "|none~0|"}, "cell must have the edges |~0|+|~0|~1|+|~0|~1|~2|"),
        ("nasbench201", {"cell": CONVOLUTIONS, "cells": 0}, "cells must be an integer of at least 1, not 0"),
        ("darts", {"normal": "|none~0|", "reduce": "|none~0|"}, "normal: 'none' in node 2 must be one of max_pool_3x3"),
        ("darts", {"normal": SKIPS, "reduce": SKIPS, "cells": 2}, "cells must be an integer of at least 3"),
        ("nasnet", {"normal": "|identity~0|", "reduce": ""}, "reduce must be a cell such as |identity~0|, not ''"),
        ("cnn", {"layers": []}, "layers must be a list with at least one layer, not []"),
        ("cnn", {"layers": [{"kernel": 4}]}, "layers[0].kernel must be odd, so that an image keeps its size, not 4"),
        ("cnn", {"layers": [{"depth": 4}]}, "layers[0] must be an object of width, kernel, stride, skip, not {'depth'"),
        ("cnn", {"layers": [{"skip": 1}]}, "layers[0].skip must be true or false, not 1"),
        ("mlp", {"widths": [8, 0]}, "widths[1] must be an integer of at least 1, not 0"),
        ("mlp", {"activation": "sin"}, "activation must be one of relu, gelu, silu, tanh, not 'sin'"),
        ("transformer", {"layers": [{"heads": 3}]}, "layers[0].heads must divide the width 64, as 3 does not"),
        ("transformer", {"layers": [{}], "patch": 3}, "patch must divide the images' sides 8 and 8, as 3 does not"),
    ],
)
def test_a_wrong_argument_is_told_in_a_sentence(name: str, args: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidJob) as error:
        build_model(ModelSource(name=name, args=args), digits())
    assert says in str(error.value)
