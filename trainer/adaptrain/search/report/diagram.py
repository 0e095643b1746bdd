"""Diagrams of architectures as SVG: layers from left to right (Sugiyama et al., 1981).

A node lies a layer after the last one that feeds it. Where an edge passes other layers, it has a place of its own in
each, so that it crosses no box. In each layer, nodes are sorted by the mean place of those that they are connected
with, which leaves few crossings.
"""

from dataclasses import dataclass
from html import escape
from itertools import pairwise

from adaptrain.search.spaces.base import Diagram

LETTER, LINE, PAD = 6.7, 15, 7
"""Width of a letter, height of a line, and what is around a label, in pixels. Letters are all of one width, so that a
label's is known wherever it is shown."""
GAP, BETWEEN, PASSING = 34, 10, 6
"""Between layers, between boxes of a layer, and the height that is left for an edge that passes."""
SWEEPS = 8
FONT = "11px ui-monospace, monospace"
Place = tuple[float, float]


@dataclass
class _Item:
    """A box, or where an edge passes a layer: then it has no lines."""

    lines: list[str]
    layer: int
    before: list[int]
    after: list[int]
    y: float = 0.0

    @property
    def height(self) -> float:
        return LINE * len(self.lines) + PAD if self.lines else PASSING

    @property
    def width(self) -> float:
        return LETTER * max(map(len, self.lines)) + 2 * PAD if self.lines else 0.0


def draw(diagram: Diagram) -> str:
    """An ``svg`` element. The heavier an edge's weight is, the wider its line; those of negative ones are dashed.

    Raises:
        ValueError: the diagram has a cycle.
    """
    items, paths = _items(diagram)
    layers = _sorted(items)
    height = max(sum(items[n].height + BETWEEN for n in layer) for layer in layers)
    lefts, widths, x = [], [], 1.0
    for layer in layers:
        widths.append(max(items[n].width for n in layer))
        lefts.append(x)
        x += widths[-1] + GAP
        y = (height - sum(items[n].height + BETWEEN for n in layer) + BETWEEN) / 2
        for n in layer:
            items[n].y = y + items[n].height / 2
            y += items[n].height + BETWEEN
    largest = max((abs(weight) for weight in diagram.weights), default=1.0) or 1.0
    drawn = []
    for n, path in enumerate(paths):
        points: list[Place] = []
        for at in path:
            left, right = lefts[items[at].layer], lefts[items[at].layer] + widths[items[at].layer]
            points += [(left, items[at].y), (right, items[at].y)]
        drawn.append(_edge(points[1:-1], diagram.weights[n] / largest if diagram.weights else None))
    boxes = [_box(item, lefts[item.layer], widths[item.layer]) for item in items if item.lines]
    wide = x - GAP + 1
    return (
        f'<svg class="architecture" viewBox="0 0 {wide:.0f} {height:.0f}" style="max-width: {wide:.0f}px" role="img">'
        f"<title>{escape(diagram.title)}</title>{''.join(drawn)}{''.join(boxes)}</svg>"
    )


def _items(diagram: Diagram) -> tuple[list[_Item], list[list[int]]]:
    """All nodes, then places where edges pass; and of each edge the items along it."""
    feeding: dict[int, list[int]] = {n: [] for n in range(len(diagram.nodes))}
    for start, end in diagram.edges:
        feeding[end].append(start)
    layer: dict[int, int] = {}
    while len(layer) < len(feeding):
        ready = [n for n in feeding if n not in layer and all(start in layer for start in feeding[n])]
        if not ready:
            raise ValueError(f"{diagram.title}: there is a cycle, so that it has no layers")
        layer |= {n: 1 + max((layer[start] for start in feeding[n]), default=-1) for n in ready}
    items = [_Item(label.split("\n"), layer[n], [], []) for n, label in enumerate(diagram.nodes)]
    paths = []
    for start, end in diagram.edges:
        path = [start]
        for passed in range(layer[start] + 1, layer[end]):
            path.append(len(items))
            items.append(_Item([], passed, [], []))
        path.append(end)
        for one, other in pairwise(path):
            items[one].after.append(other)
            items[other].before.append(one)
        paths.append(path)
    return items, paths


def _sorted(items: list[_Item]) -> list[list[int]]:
    """Items of each layer from top to bottom."""
    layers: list[list[int]] = [[] for _ in range(1 + max(item.layer for item in items))]
    for n, item in enumerate(items):
        layers[item.layer].append(n)
    for sweep in range(SWEEPS):
        places = {n: (place + 0.5) / len(layer) for layer in layers for place, n in enumerate(layer)}
        for layer in layers if sweep % 2 == 0 else layers[::-1]:

            def mean(n: int) -> float:
                near = items[n].before if sweep % 2 == 0 else items[n].after  # noqa: B023 it is used at once
                return sum(places[one] for one in near) / len(near) if near else places[n]  # noqa: B023

            layer.sort(key=mean)
            places |= {n: (place + 0.5) / len(layer) for place, n in enumerate(layer)}
    return layers


def _edge(points: list[Place], weight: float | None) -> str:
    """Through points, level at each; straight where it passes a layer."""
    (x, y), *others = points
    steps = [f"M{x:.1f},{y:.1f}"]
    for n, (to_x, to_y) in enumerate(others):
        middle = (x + to_x) / 2
        curve = n % 2 == 0 and to_y != y
        steps.append(
            f"C{middle:.1f},{y:.1f} {middle:.1f},{to_y:.1f} {to_x:.1f},{to_y:.1f}" if curve else f"H{to_x:.1f}"
        )
        x, y = to_x, to_y
    line = f'd="{" ".join(steps)}" fill="none" stroke="#7b8ba0"'
    head = f'<path d="M{x - 6:.1f},{y - 3:.1f} L{x:.1f},{y:.1f} L{x - 6:.1f},{y + 3:.1f} z" fill="#7b8ba0"/>'
    if weight is None:
        return f"<path {line}/>{head}"
    dashed = ' stroke-dasharray="4 3"' if weight < 0 else ""
    return f'<path {line} stroke-width="{0.5 + 2.5 * abs(weight):.1f}"{dashed}/>{head}'


def _box(item: _Item, left: float, width: float) -> str:
    """Boxes of a layer are of one width, so that no edge gets behind one."""
    top = item.y - item.height / 2
    texts = "".join(
        f'<text x="{left + width / 2:.1f}" y="{top + PAD / 2 + LINE * (n + 0.78):.1f}" text-anchor="middle"'
        f' style="font: {FONT}">{escape(line)}</text>'
        for n, line in enumerate(item.lines)
    )
    return (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{item.height:.1f}" rx="4" fill="#eef4fb"'
        f' stroke="#2f6fb2"/>{texts}'
    )
