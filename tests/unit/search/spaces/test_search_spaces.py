"""Search spaces: what is near what, and which architectures are the same."""

from collections.abc import Callable, Hashable
from itertools import product

import numpy as np
import pytest
from adaptrain.data.digits import digits
from adaptrain.models.cost import count_parameters
from adaptrain.models.registry import build_model
from adaptrain.search.spaces.base import Dimension, Space
from adaptrain.search.spaces.cells import Darts, Nasnet, TwoCells, canonical
from adaptrain.search.spaces.chains import Chain, Cnn, Mlp, Transformer
from adaptrain.search.spaces.nasbench201 import NasBench201
from adaptrain.search.spaces.nasbenchgraph import LAYERS, STRUCTURES, NasBenchGraph
from adaptrain.search.spaces.parameters import Parameters
from adaptrain.search.spaces.product import Product
from adaptrain.search.spaces.registry import SPACES as REGISTERED
from adaptrain.search.spaces.registry import make_space
from adaptrain.search.spaces.topology import Topology
from adaptrain_api.components import ModelSource
from adaptrain_api.search.space import Parameter, SearchSpace

SPACES = [NasBench201(), NasBenchGraph(), Nasnet(), Darts()]
CHAINS: list[Chain] = [Cnn(), Mlp(), Transformer()]


def test_every_space_that_a_manifest_can_name_is_tested_here() -> None:
    """But for topologies, which have no dimensions: test_search_neat.py."""
    assert {type(space) for space in (*SPACES, *CHAINS)} | {Topology} == set(REGISTERED.values())


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
def test_neighbours_differ_in_one_choice(space: Space) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        one = space.random(rng)
        near = space.neighbours(one)
        assert len(set(near)) == len(near) == sum(size - 1 for size in space.sizes)
        assert all(sum(a != b for a, b in zip(one, other, strict=True)) == 1 for other in near)
        assert space.mutate(one, rng) in near
        other = space.random(rng)
        child = space.crossover(one, other, rng)
        assert all(c in parents for c, parents in zip(child, zip(one, other, strict=True), strict=True))


def test_ordered_choices_are_near_those_next_to_them() -> None:
    space = Space((Dimension("width", (8, 16, 32, 64, 128), "width", ordered=True), Dimension("a", ("x", "y"), "a")))
    assert space.neighbours((0, 0)) == [(1, 0), (2, 0), (0, 1)]
    assert space.neighbours((3, 1)) == [(1, 1), (2, 1), (4, 1), (3, 0)]
    assert space.describe((3, 1)) == {"width": 64, "a": "y"}


def test_what_cannot_be_built_is_never_drawn() -> None:
    class NoneWithout(Space):
        def is_valid(self, architecture: tuple[int, ...]) -> bool:
            return sum(architecture) > 0

    space = NoneWithout(tuple(Dimension(name, ("off", "on"), "switch") for name in "ab"))
    rng = np.random.default_rng(0)
    assert {space.random(rng) for _ in range(50)} == {(0, 1), (1, 0), (1, 1)}
    assert space.neighbours((0, 1)) == [(1, 1)]
    assert len(space) == 4


def test_a_space_without_a_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="depth has no choice"):
        Space((Dimension("depth", (), "depth"),))
    with pytest.raises(ValueError, match="b has other choices than others of kind x"):
        Space((Dimension("a", ("1",), "x"), Dimension("b", ("2",), "x")))


def test_cells_that_compute_the_same_have_one_key() -> None:
    space = NasBench201()
    none, skip, conv, _, pool = range(5)
    # Edges 0->1, 0->2, 1->2, 0->3, 1->3, 2->3. The same convolution by way of either inner node.
    by_first = (conv, none, none, none, skip, none)
    by_second = (none, conv, none, none, none, skip)
    assert space.key(by_first) == space.key(by_second) == space.key((none, none, none, conv, none, none))
    # What leads nowhere counts for nothing.
    assert space.key((conv, pool, none, none, skip, none)) == space.key(by_first)
    # One convolution that is used twice is not two.
    once = (conv, none, none, none, skip, none)
    twice_used = (conv, none, skip, none, skip, skip)
    two = (conv, conv, none, none, skip, skip)
    assert len({space.key(one) for one in (once, twice_used, two)}) == 3
    assert len({space.key(one) for one in product(range(5), repeat=6)}) == 5629


def test_cells_whose_nodes_are_in_another_order_have_one_key() -> None:
    one = ((("a", 0), ("b", 1)), (("a", 0), ("a", 1)), (("c", 2), ("c", 3)))
    swapped = ((("a", 1), ("a", 0)), (("a", 0), ("b", 1)), (("c", 2), ("c", 3)))
    other = ((("a", 0), ("b", 1)), (("a", 0), ("a", 1)), (("c", 2), ("c", 2)))
    assert canonical(one) == canonical(swapped) != canonical(other)
    # Two nodes made alike are two: what is applied to one and to both of them differs.
    twin = (("a", 0), ("a", 1))
    of_one, of_other = ((twin, twin, (("c", n), ("d", n))) for n in (2, 3))
    assert canonical(of_one) == canonical(of_other) != canonical((twin, twin, (("c", 2), ("d", 3))))


@pytest.mark.parametrize("space", [Nasnet(), Darts()], ids=lambda space: type(space).__name__)
def test_renumbered_nodes_never_change_the_key(space: TwoCells) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        cell = space.cells(space.random(rng))[0]
        order = [int(n) for n in rng.permutation(len(cell))]
        while any(start - 2 in order[place:] for place, n in enumerate(order) for _, start in cell[n]):
            order = [int(n) for n in rng.permutation(len(cell))]
        new = {0: 0, 1: 1} | {old + 2: place + 2 for place, old in enumerate(order)}
        again = tuple(((b, new[j]), (a, new[i])) for (a, i), (b, j) in (cell[old] for old in order))
        assert canonical(again) == canonical(cell)


def test_darts_cells_are_encoded_and_read_back() -> None:
    space, rng = Darts(), np.random.default_rng(0)
    for one in (space.random(rng) for _ in range(20)):
        assert space.encode(space.cells(one)) == one


def test_layers_beyond_the_depth_count_for_nothing() -> None:
    space = Cnn(depths=[1, 3], widths=[8, 16], kernels=[3], strides=[1], skips=[False])
    shallow, deep = (0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0), (1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0)
    assert space.key(shallow) == space.key((*shallow[:9], 0, *shallow[10:]))
    assert space.key(deep) != space.key((*deep[:9], 0, *deep[10:]))
    assert len(space.neighbours(shallow)) == 2  # the other depth, the other width of its layer
    assert len(space.neighbours(deep)) == 4
    assert space.model(shallow)["args"] == {"layers": [{"width": 16, "kernel": 3, "stride": 1, "skip": False}]}
    assert space.features(np.array([shallow, deep]))[:, :2].tolist() == [[0, 1 / 3], [1 / 3, 2 / 3]]


@pytest.mark.parametrize("space", CHAINS, ids=lambda space: type(space).__name__)
def test_a_chain_knows_its_size_without_being_built(space: Chain) -> None:
    data, rng = digits(), np.random.default_rng(0)
    drawn = [space.random(rng) for _ in range(20)]
    built = [count_parameters(build_model(ModelSource.model_validate(space.model(one)), data)) for one in drawn]
    both = np.log10(built), space.features(np.array(drawn))[:, -1]
    assert np.corrcoef(*both)[0, 1] > 0.999


def test_a_transformers_heads_divide_its_width() -> None:
    space = Transformer(widths=[6, 8], heads=[2, 3, 4])
    rng = np.random.default_rng(0)
    for one in (space.random(rng) for _ in range(50)):
        args = space.model(one)["args"]
        assert all(args["width"] % layer["heads"] == 0 for layer in args["layers"])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Cnn(kernels=[3, 4]), r"kernels\[1\] must be odd"),
        (lambda: Cnn(widths=[]), "widths must be a list with at least one item"),
        (lambda: Cnn(widths=[8, 8]), "widths must not hold an item twice"),
        (lambda: Mlp(activations=["sin"]), r"activations\[0\] must be one of relu, gelu, silu, tanh, not 'sin'"),
        (lambda: Transformer(widths=[6], heads=[4]), r"none of \[4\] divides one of \[6\]"),
        (lambda: Nasnet(operations=["conv_9x9"]), r"operations\[0\] must be one of identity, .*not 'conv_9x9'"),
        (lambda: Darts(cells=2), "cells must be an integer of at least 3"),
        (lambda: NasBench201(cells=0), "cells must be an integer of at least 1"),
    ],
)
def test_a_wrong_argument_of_a_space(make: Callable[[], Space], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_graph_networks_that_compute_the_same_have_one_key() -> None:
    space = NasBenchGraph()
    gat, gcn, skip = LAYERS.index("gat"), LAYERS.index("gcn"), LAYERS.index("skip")
    chain, star = STRUCTURES.index((0, 1, 2, 3)), STRUCTURES.index((0, 0, 0, 0))
    assert space.key((star, gat, gcn, gat, gcn)) == space.key((star, gcn, gat, gcn, gat))
    assert space.key((chain, gat, gcn, skip, skip)) == space.key((chain, skip, gat, skip, gcn))
    assert space.key((chain, gat, gcn, skip, skip)) != space.key((chain, gcn, gat, skip, skip))
    assert not space.is_valid((chain, skip, skip, skip, skip))
    assert space.key((star, gat, gcn, gat, skip)) == space.key((STRUCTURES.index((0, 1, 1, 1)), skip, gat, gcn, gat))


def test_the_table_of_graph_networks_has_as_many_as_there_are_keys() -> None:
    """26,206, as the paper says (Qin et al., 2022)."""
    space = NasBenchGraph()
    every = product(*map(range, space.sizes))
    assert len({space.key(one) for one in every if space.is_valid(one)}) == 26206


@pytest.mark.parametrize("space", [*SPACES, *CHAINS, Product(NasBenchGraph(), Darts())])
def test_groups_hold_all_features(space: Space) -> None:
    rng = np.random.default_rng(0)
    codes = np.array([space.random(rng) for _ in range(5)])
    assert space.features(codes).shape == (5, sum(space.feature_groups))


def test_graph_networks_that_compute_the_same_have_the_same_features() -> None:
    space, rng = NasBenchGraph(), np.random.default_rng(0)
    found: dict[Hashable, list[float]] = {}
    for one in (space.random(rng) for _ in range(5000)):
        features = space.features(np.array([one]))[0].tolist()
        assert found.setdefault(space.key(one), features) == features


def test_graphs_tell_what_feeds_what() -> None:
    none, skip, conv, _, pool = range(5)
    feeds, operations = NasBench201().graph((conv, none, pool, skip, none, conv))
    # Input and output, and edges 0->1, 1->2, 0->3, 2->3, which are nodes 1, 3, 4, 6.
    assert set(zip(*np.nonzero(feeds), strict=True)) == {(0, 1), (0, 4), (1, 3), (3, 6), (4, 7), (6, 7)}
    assert operations.tolist() == [5, conv, none, pool, skip, none, conv, 6]

    feeds, operations = NasBenchGraph().graph((STRUCTURES.index((0, 0, 1, 1)), 3, 1, 4, 1))
    assert set(zip(*np.nonzero(feeds), strict=True)) == {(0, 1), (0, 2), (1, 3), (1, 4), (2, 5), (3, 5), (4, 5)}
    assert operations.tolist() == [9, 3, 1, 4, 1, 10]


@pytest.mark.parametrize("space", [*SPACES, Space((Dimension("a", ("x", "y"), "a"), Dimension("b", ("z",), "b")))])
def test_graphs_are_as_large_and_have_an_output(space: Space) -> None:
    rng = np.random.default_rng(0)
    graphs = [space.graph(space.random(rng)) for _ in range(30)]
    assert len({feeds.shape for feeds, _ in graphs}) == 1
    for feeds, operations in graphs:
        assert len(feeds) == len(operations)
        assert 0 <= operations.min() <= operations.max() < space.graph_operations
        assert not np.linalg.matrix_power(feeds.astype(int), len(feeds)).any()  # no cycle


def test_features_count_what_lies_on_the_ways() -> None:
    space = NasBench201()
    none, skip, conv, _, pool = range(5)
    cells = np.array([(none,) * 6, (conv, none, pool, skip, none, conv), (skip,) * 6])
    counts = space.features(cells)
    assert counts.sum(1).tolist() == [0, 2, 4]
    assert counts[2].max() == 4  # four ways without an operation


def test_a_product_is_as_its_parts_are() -> None:
    """What is no neighbour in a part is none in the product."""
    part, more = Cnn(), Parameters([Parameter(name="rate", min=1, max=9, count=5)])
    both = make_space(SearchSpace(name="cnn", parameters=[Parameter(name="rate", min=1, max=9, count=5)]))
    rng = np.random.default_rng(0)
    for _ in range(20):
        one = both.random(rng)
        a, b = one[:-1], one[-1:]
        expected = {(*near, *b) for near in part.neighbours(a)} | {(*a, *near) for near in more.neighbours(b)}
        assert set(both.neighbours(one)) == expected
        assert both.choice(one) == {**part.choice(a), **more.choice(b)}
        assert both.is_valid(both.crossover(one, both.random(rng), rng))
