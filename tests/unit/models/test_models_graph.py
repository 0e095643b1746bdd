"""Layers of graph neural networks beside their papers' formulas on a tiny graph, and what nodes' order means."""

from typing import cast

import pytest
import torch
from adaptrain.data.digits import digits
from adaptrain.models.cells.graph import LAYERS, NAMES, Attention, Propagation, connected, grid, nasbenchgraph
from adaptrain.models.registry import build_model
from adaptrain_api.components import ModelSource
from torch import nn

NODES, BEFORE, AFTER = 4, 3, 8
EDGES = [[0, 1], [1, 2], [0, 2]]
"""A triangle, and node 3 alone."""
NEAR = {0: [1, 2], 1: [0, 2], 2: [0, 1], 3: []}


def layer(name: str) -> nn.Module:
    torch.manual_seed(0)
    return LAYERS[name](connected(NODES, EDGES), BEFORE, AFTER).double()


def x() -> torch.Tensor:
    return torch.randn(2, NODES, BEFORE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def formula(name: str, x: torch.Tensor) -> list[torch.Tensor]:
    """What is propagated to each node of a sample, before it is multiplied by weights; by sums over neighbours."""
    found = []
    for v, near in NEAR.items():
        around = torch.stack([x[u] for u in near]) if near else torch.zeros(1, BEFORE, dtype=x.dtype)
        scaled = sum((x[u] / (len(near) * len(NEAR[u])) ** 0.5 for u in near), torch.zeros_like(x[v]))
        looped = sum((x[u] / ((len(near) + 1) * (len(NEAR[u]) + 1)) ** 0.5 for u in (*near, v)), torch.zeros_like(x[v]))
        parts = {
            "gcn": [looped],
            "gin": [x[v] + around.sum(0)],
            "cheb": [x[v], -scaled],
            "sage": [x[v], around.mean(0)],
            "arma": [scaled, x[v]],
            "graph": [x[v], around.sum(0)],
        }
        found.append(torch.cat(parts[name]))
    return found


@pytest.mark.parametrize("name", ["gcn", "gin", "cheb", "sage", "arma", "graph"])
def test_a_layer_computes_its_papers_sum(name: str) -> None:
    one, given = layer(name), x()
    linear = next(part for part in one.modules() if isinstance(part, Propagation)).linear
    for sample, said in zip(given, one(given), strict=True):
        for v, propagated in enumerate(formula(name, sample)):
            expected = linear.weight @ propagated + linear.bias
            torch.testing.assert_close(said[v], expected.relu() if name == "arma" else expected)


def test_attention_is_a_softmax_over_neighbours_and_itself() -> None:
    one, given = layer("gat"), x()
    assert isinstance(one, Attention)
    size = AFTER // len(one.own)
    with torch.no_grad():
        one.bias.normal_()
    for sample, said in zip(given, one(given), strict=True):
        for v, near in NEAR.items():
            for head, (own, other) in enumerate(zip(one.own, one.other, strict=True)):
                weight = one.linear.weight[head * size : (head + 1) * size]
                who = [v, *near]
                scores = torch.stack([own @ (weight @ sample[v]) + other @ (weight @ sample[u]) for u in who])
                shares = torch.where(scores > 0, scores, 0.2 * scores).softmax(0)
                mixed = sum((a * (weight @ sample[u]) for a, u in zip(shares, who, strict=True)), torch.zeros(size))
                place = slice(head * size, (head + 1) * size)
                torch.testing.assert_close(said[v][place], mixed + one.bias[place])


@pytest.mark.parametrize("name", LAYERS)
def test_nodes_in_another_order_are_computed_alike(name: str) -> None:
    order = torch.tensor([2, 0, 3, 1])
    place = order.argsort().tolist()
    given, one = x(), layer(name)
    torch.manual_seed(0)
    other = LAYERS[name](connected(NODES, [[place[a], place[b]] for a, b in EDGES]), BEFORE, AFTER).double()
    torch.testing.assert_close(other(given[:, order]), one(given)[:, order])
    if name != "fc":
        moved = given.clone()
        moved[:, 1] += 1
        changed = (one(moved) != one(given)).any(2).any(0).tolist()
        assert changed == [True, True, True, False], "what a node says reaches its neighbours, and them alone"


def test_the_network_does_not_know_the_order_of_nodes() -> None:
    order = torch.tensor([2, 0, 3, 1])
    place = order.argsort().tolist()
    logits = []
    for edges, given in ((EDGES, x()), ([[place[a], place[b]] for a, b in EDGES], x()[:, order])):
        torch.manual_seed(0)
        args = {"structure": "0012", "layers": ["gat", "sage", "skip", "gin"], "width": 8, "edges": edges}
        logits.append(nasbenchgraph((NODES, BEFORE), 5, dtype="float64", **args)(given))
    assert logits[0].shape == (2, 5)
    torch.testing.assert_close(*logits)


@pytest.mark.parametrize(
    ("structure", "layers", "outputs"),
    [("00", ["gcn", "fc"], 2), ("00", ["gcn", "skip"], 1), ("01", ["gcn", "skip"], 1), ("00", ["skip", "skip"], 2)],
)
def test_skips_from_the_input_are_outputs_only_if_there_is_nothing_else(
    structure: str, layers: list[str], outputs: int
) -> None:
    model = nasbenchgraph((1, 4, 4), 3, structure, layers, width=8)
    assert model(torch.zeros(2, 1, 4, 4)).shape == (2, 3)
    (head,) = (part for name, part in model.named_modules() if name == "head")
    assert cast(nn.Linear, head).in_features == outputs * 8


def test_pixels_have_four_neighbours() -> None:
    adjacency = grid(3, 4)
    assert (adjacency == adjacency.T).all()
    assert adjacency.sum(1).reshape(3, 4).tolist() == [[2, 3, 3, 2], [3, 4, 4, 3], [2, 3, 3, 2]]
    assert adjacency[5].nonzero().flatten().tolist() == [1, 4, 6, 9]


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_learns_digits(name: str) -> None:
    data = digits()
    torch.manual_seed(0)
    args = {"structure": "0123", "layers": [name, "fc", name, "skip"], "width": 16}
    model = build_model(ModelSource(name="nasbenchgraph", args=args), data)
    given, classes = data.train.fetch(torch.arange(0, 1000, 20))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        losses.append(nn.functional.cross_entropy(model(given), classes))
        losses[-1].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert float(losses[-1].detach()) < 0.9 * float(losses[0].detach())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    ("shape", "args", "message"),
    [
        ((1, 8, 8), {"structure": "012"}, "structure must be a digit for each of the 2 layers"),
        ((1, 8, 8), {"structure": "02"}, "structure: layer 2 must be fed by one before it, 0 to 1, not by 2"),
        ((1, 8, 8), {"layers": ["gcn", "conv"]}, r"layers\[1\] must be one of gat, gcn"),
        ((1, 8, 8), {"layers": []}, "layers must be a list with at least one layer"),
        ((1, 8, 8), {"width": 6}, "width must be a multiple of 4, not 6"),
        ((1, 8, 8), {"edges": [[0, 1]]}, "edges need inputs of nodes and features, not of 3 dimensions"),
        ((5, 2), {}, "edges must be given, since the inputs have 2 dimensions"),
        ((5, 2), {"edges": [[0, 5]]}, r"edges\[0\] must be two different nodes of 0 to 4, not \[0, 5\]"),
        ((5, 2), {"edges": [[1, 1]]}, r"edges\[0\] must be two different nodes"),
        ((5, 2), {"edges": "0-1"}, "edges must be a list of pairs of nodes"),
    ],
)
def test_what_cannot_be_built_is_told(shape: tuple[int, ...], args: dict[str, object], message: str) -> None:
    given: dict[str, object] = {"structure": "01", "layers": ["gcn", "skip"]}
    with pytest.raises(ValueError, match=message):
        nasbenchgraph(shape, 3, **(given | args))  # type: ignore[arg-type]


def test_the_space_knows_the_models_layers() -> None:
    from adaptrain.search.spaces.nasbenchgraph import LAYERS as CHOICES

    assert set(CHOICES) == set(NAMES)
