"""Cells: nodes that are sums of operations on nodes before them, written as NAS-Bench-201 writes them."""

from collections.abc import Callable, Collection

import torch
from torch import nn

Nodes = list[list[tuple[str, int]]]
"""Of each node, the operations that it is the sum of, and what each is applied to. The cell's inputs come first."""


def parse(name: str, text: object, operations: Collection[str], inputs: int) -> Nodes:
    """``|conv~0|pool~1|+|conv~2|``: after two inputs, node 2 is conv of 0 plus pool of 1, and node 3 is conv of node 2.

    Raises:
        ValueError: it isn't written so, or names an operation or a node that isn't there.
    """
    if not isinstance(text, str) or not text:
        raise ValueError(f"{name} must be a cell such as |{next(iter(operations))}~0|, not {text!r}")
    nodes: Nodes = []
    for number, node in enumerate(text.split("+"), inputs):
        if len(node) < 3 or node[0] != "|" or node[-1] != "|":
            raise ValueError(f"{name}: write node {number} as |operation~input|operation~input|, not {node!r}")
        nodes.append([])
        for edge in node[1:-1].split("|"):
            operation, _, start = edge.partition("~")
            if operation not in operations:
                raise ValueError(f"{name}: {operation!r} in node {number} must be one of {', '.join(operations)}")
            if not start.isdecimal() or int(start) >= number:
                raise ValueError(f"{name}: {edge!r} must end in ~ and a node before node {number}: ~0 to ~{number - 1}")
            nodes[-1].append((operation, int(start)))
    return nodes


def live(nodes: Nodes, inputs: int) -> Nodes:
    """What the last node depends on: without ``none``, what is applied to a sum of nothing, and what leads nowhere."""
    fed, kept = set(range(inputs)), []
    for number, node in enumerate(nodes, inputs):
        kept.append([(operation, start) for operation, start in node if operation != "none" and start in fed])
        if kept[-1]:
            fed.add(number)
    needed = {inputs + len(nodes) - 1}
    for number in range(inputs + len(nodes) - 1, inputs - 1, -1):
        if number not in needed:
            kept[number - inputs] = []
        needed |= {start for _, start in kept[number - inputs]}
    return kept


class Sums(nn.Module):
    """All nodes of a cell, from its inputs, which come first among them.

    Args:
        make: the module of an operation, and of the node that it is applied to.
    """

    def __init__(self, nodes: Nodes, make: Callable[[str, int], nn.Module]) -> None:
        super().__init__()
        self.edges = nn.ModuleList(make(operation, start) for node in nodes for operation, start in node)
        self._starts = [[start for _, start in node] for node in nodes]

    def forward(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        found, edges = list(inputs), iter(self.edges)
        for starts in self._starts:
            terms = [next(edges)(found[start]) for start in starts]
            found.append(torch.stack(terms).sum(0) if terms else 0 * inputs[0])
        return found
