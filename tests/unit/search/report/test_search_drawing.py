"""Architectures as diagrams, and diagrams as SVG."""

import re
import xml.etree.ElementTree as ET
from itertools import combinations

import numpy as np
import pytest
from adaptrain.search.report.diagram import draw
from adaptrain.search.spaces.base import Diagram, Space
from adaptrain.search.spaces.cells import Darts, Nasnet
from adaptrain.search.spaces.chains import Cnn, Mlp, Transformer
from adaptrain.search.spaces.nasbench201 import NasBench201
from adaptrain.search.spaces.nasbenchgraph import NasBenchGraph
from adaptrain.search.spaces.product import Product
from adaptrain.search.spaces.topology import Topology

SPACES: list[Space] = [
    *(NasBench201(), NasBenchGraph(), Nasnet(), Darts(), Topology(3, 2), Cnn(), Mlp(), Transformer()),
    Product(Mlp(), Darts(nodes=2)),
]
Box = tuple[float, float, float, float]


def boxes(svg: ET.Element) -> list[Box]:
    """Left, top, right, bottom."""
    read = [[float(one.get(name, "")) for name in ("x", "y", "width", "height")] for one in svg.findall("rect")]
    return [(x, y, x + wide, y + high) for x, y, wide, high in read]


def curves(svg: ET.Element) -> list[list[tuple[float, float]]]:
    """Points along each edge, a pixel or less apart in x."""
    found = []
    for path in svg.findall("path[@fill='none']"):
        points: list[tuple[float, float]] = []
        for kind, text in re.findall(r"([MHC])([^MHC]*)", path.get("d", "")):
            numbers = [float(one) for one in re.split(r"[ ,]+", text.strip())]
            if kind == "M":
                points.append((numbers[0], numbers[1]))
                continue
            (x, y), t = points[-1], np.linspace(0, 1, 200)
            (ax, ay, bx, by, ex, ey) = numbers if kind == "C" else (x, y, numbers[0], y, numbers[0], y)
            shares = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
            points += zip(
                sum(s * p for s, p in zip(shares, (x, ax, bx, ex), strict=True)),
                sum(s * p for s, p in zip(shares, (y, ay, by, ey), strict=True)),
                strict=True,
            )
        found.append(points)
    return found


def drawn_of(space: Space, rng: np.random.Generator) -> list[tuple[Diagram, ET.Element]]:
    architecture = space.random(rng)
    for _ in range(60 if isinstance(space, Topology) else 0):
        architecture = space.mutate(architecture, rng)
    return [(one, ET.fromstring(draw(one))) for one in space.diagrams(architecture)]


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
def test_nothing_overlaps(space: Space) -> None:
    rng = np.random.default_rng(0)
    for diagram, svg in (each for _ in range(10) for each in drawn_of(space, rng)):
        places = boxes(svg)
        assert len(places) == len(diagram.nodes)
        _, _, wide, high = map(float, svg.get("viewBox", "").split())
        assert all(x >= 0 and y >= 0 and right <= wide and bottom <= high for x, y, right, bottom in places)
        for one, other in combinations(places, 2):
            assert one[2] < other[0] or other[2] < one[0] or one[3] < other[1] or other[3] < one[1]
        for text in svg.findall("text"):
            x, y, half = float(text.get("x", "")), float(text.get("y", "")), 6.7 * len(text.text or "") / 2
            assert any(
                left <= x - half and x + half <= right and top + 8 <= y <= low - 3 for left, top, right, low in places
            )
        edges = curves(svg)
        assert len(edges) == len(diagram.edges)
        for edge in edges:
            for left, top, right, bottom in places:
                assert not any(left + 0.2 < x < right - 0.2 and top < y < bottom for x, y in edge)


def test_edges_lead_from_box_to_box() -> None:
    rng = np.random.default_rng(1)
    for space in SPACES:
        for diagram, svg in drawn_of(space, rng):
            places = boxes(svg)
            for (start, end), points in zip(diagram.edges, curves(svg), strict=True):
                left, right = places[start], places[end]
                middles = (left[1] + left[3]) / 2, (right[1] + right[3]) / 2
                assert points[0] == pytest.approx((left[2], middles[0]), abs=0.2)
                assert points[-1] == pytest.approx((right[0], middles[1]), abs=0.2)


def test_what_a_diagram_says() -> None:
    none, skip, conv, _, pool = range(5)
    (cell,) = NasBench201().diagrams((conv, pool, none, none, skip, none))
    assert cell.nodes == ("input", "nor_conv_1x1", "skip_connect", "output"), "the pool leads nowhere"
    assert cell.edges == ((0, 1), (1, 2), (2, 3))
    (chain,) = Cnn(depths=[2], widths=[8], kernels=[3], strides=[1], skips=[True]).diagrams((0,) * 9)
    layer = "width 8\nkernel 3\nstride 1\nskip yes"
    assert (chain.title, chain.nodes) == ("depth 2", ("input", layer, layer, "output"))
    (tree,) = NasBenchGraph().diagrams((1, 0, 1, 2, 3))
    assert tree.edges == ((0, 1), (0, 2), (0, 3), (1, 4), (2, 5), (3, 5), (4, 5))
    (small,) = Topology(1, 1).diagrams(((0, 2, 0.5, False), (0, 9, 1.0, True), (1, 2, -2.0, True), (9, 2, 0.5, True)))
    assert small.nodes == ("input 0", "bias", "hidden 1", "output 0")
    assert dict(zip(small.edges, small.weights, strict=True)) == {(0, 2): 1.0, (1, 3): -2.0, (2, 3): 0.5}


def test_a_cell_is_drawn_as_its_model_computes_it() -> None:
    """In NASNet's cells what feeds nothing is the output, an input of the cell too; in DARTS's all nodes are."""
    for space, outputs in ((Nasnet(blocks=2), ["last cell", "+ 2", "+ 3"]), (Darts(nodes=2), ["+ 2", "+ 3"])):
        for cell, title in zip(
            space.diagrams((0,) * len(space.dimensions)), ("normal cell", "reduce cell"), strict=True
        ):
            assert cell.title == title
            assert [cell.nodes[a] for a, b in cell.edges if cell.nodes[b] == "output"] == outputs
            assert cell.nodes.count(space.operations[0]) == 4


def test_labels_are_escaped_and_weights_shown() -> None:
    diagram = Diagram("<a> & b", ("x < y", "&"), ((0, 1),), (-2.0,))
    svg = ET.fromstring(draw(diagram))
    assert svg.findtext("title") == "<a> & b"
    assert [one.text for one in svg.findall("text")] == ["x < y", "&"]
    assert svg.findall("path")[0].get("stroke-dasharray"), "it is negative"
    with pytest.raises(ValueError, match="there is a cycle"):
        draw(Diagram("round", ("a", "b"), ((0, 1), (1, 0))))
