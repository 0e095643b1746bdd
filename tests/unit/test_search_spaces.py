"""Search spaces: what is near what, and which architectures are the same."""

from itertools import product

import numpy as np
import pytest
from adaptrain.search.spaces.base import Dimension, Space
from adaptrain.search.spaces.nasbench201 import NasBench201
from adaptrain.search.spaces.nasbenchgraph import LAYERS, STRUCTURES, NasBenchGraph

SPACES = [NasBench201(), NasBenchGraph()]


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


def test_graph_networks_that_compute_the_same_have_one_key() -> None:
    space = NasBenchGraph()
    gat, gcn, skip = LAYERS.index("gat"), LAYERS.index("gcn"), LAYERS.index("skip")
    chain, star = STRUCTURES.index((0, 1, 2, 3)), STRUCTURES.index((0, 0, 0, 0))
    assert space.key((star, gat, gcn, gat, gcn)) == space.key((star, gcn, gat, gcn, gat))
    assert space.key((chain, gat, gcn, skip, skip)) == space.key((chain, skip, gat, skip, gcn))
    assert space.key((chain, gat, gcn, skip, skip)) != space.key((chain, gcn, gat, skip, skip))
    assert not space.is_valid((chain, skip, skip, skip, skip))


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
        assert 0 <= operations.min() <= operations.max() < space.operations
        assert not np.linalg.matrix_power(feeds.astype(int), len(feeds)).any()  # no cycle


def test_features_count_what_lies_on_the_ways() -> None:
    space = NasBench201()
    none, skip, conv, _, pool = range(5)
    cells = np.array([(none,) * 6, (conv, none, pool, skip, none, conv), (skip,) * 6])
    counts = space.features(cells)
    assert counts.sum(1).tolist() == [0, 2, 4]
    assert counts[2].max() == 4  # four ways without an operation
