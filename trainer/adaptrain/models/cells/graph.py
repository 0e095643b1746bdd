"""Graph neural networks of NAS-Bench-Graph's cell (Qin et al., 2022), for samples that are graphs of one shape.

A graph is its adjacency matrix A [nodes, nodes] of zeros and ones, symmetric and without loops; D are its degrees.
Layers map [n, nodes, before] to [n, nodes, after], and whatever order nodes are in, they compute the same of each.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from adaptrain.config.arguments import one_of, positive
from adaptrain.models.arguments import floating

HEADS = 4
"""Of attention, as in the benchmark's code."""
SLOPE = 0.2
"""Of the attention's leaky ReLU (Veličković et al., 2018, section 2.1)."""


def symmetric(adjacency: torch.Tensor) -> torch.Tensor:
    """D^-1/2 A D^-1/2; nodes without any edge stay without."""
    scale = adjacency.sum(1).clamp(min=1) ** -0.5
    return scale[:, None] * adjacency * scale


class Propagation(nn.Module):
    """X → Σ M X W_M + b, over fixed matrices M [nodes, nodes]."""

    matrices: torch.Tensor

    def __init__(self, matrices: Sequence[torch.Tensor], before: int, after: int) -> None:
        super().__init__()
        self.register_buffer("matrices", torch.stack(list(matrices)), persistent=False)
        self.linear = nn.Linear(len(matrices) * before, after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        propagated = self.matrices @ x[:, None]
        return self.linear(propagated.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """GAT (Veličković et al., 2018, equations 1 to 5): each node's neighbours and itself, weighted by a softmax over
    LeakyReLU(a · [W x_i ‖ W x_j]); its heads side by side."""

    near: torch.Tensor

    def __init__(self, adjacency: torch.Tensor, before: int, after: int) -> None:
        super().__init__()
        self.register_buffer("near", (adjacency + torch.eye(len(adjacency))).bool(), persistent=False)
        self.linear = nn.Linear(before, after, bias=False)
        self.own = nn.Parameter(torch.empty(HEADS, after // HEADS))
        self.other = nn.Parameter(torch.empty(HEADS, after // HEADS))
        self.bias = nn.Parameter(torch.zeros(after))
        nn.init.xavier_uniform_(self.own)
        nn.init.xavier_uniform_(self.other)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.linear(x).unflatten(2, (HEADS, -1)).transpose(1, 2)
        own, other = ((heads * a[:, None]).sum(3) for a in (self.own, self.other))
        scores = F.leaky_relu(own[..., :, None] + other[..., None, :], SLOPE)
        shares = scores.masked_fill(~self.near, -torch.inf).softmax(3)
        return (shares @ heads).transpose(1, 2).flatten(2) + self.bias  # type: ignore[no-any-return]


def gcn(adjacency: torch.Tensor, before: int, after: int) -> nn.Module:
    """Kipf and Welling, 2017, equation 2: symmetric normalization after a loop is added to each node."""
    return Propagation([symmetric(adjacency + torch.eye(len(adjacency)))], before, after)


def gin(adjacency: torch.Tensor, before: int, after: int) -> nn.Module:
    """Xu et al., 2019, equation 4.1: the sum over neighbours and itself; ε is 0 and the perceptron has one layer, as in
    the benchmark's code."""
    return Propagation([adjacency + torch.eye(len(adjacency))], before, after)


def cheb(adjacency: torch.Tensor, before: int, after: int) -> nn.Module:
    """Defferrard et al., 2016, section 2.1, up to the first polynomial: T_0 = 1 and T_1 = 2 L / λ - 1, where the
    largest eigenvalue λ of L = 1 - D^-1/2 A D^-1/2 is taken to be 2 (Kipf and Welling, 2017, section 2.2)."""
    return Propagation([torch.eye(len(adjacency)), -symmetric(adjacency)], before, after)


def sage(adjacency: torch.Tensor, before: int, after: int) -> nn.Module:
    """Hamilton et al., 2017, algorithm 1 with the mean over all neighbours."""
    mean = adjacency / adjacency.sum(1, keepdim=True).clamp(min=1)
    return Propagation([torch.eye(len(adjacency)), mean], before, after)


def arma(adjacency: torch.Tensor, before: int, after: int) -> nn.Module:
    """Bianchi et al., 2021, one recursion of one stack: ReLU(D^-1/2 A D^-1/2 X W + X V)."""
    return nn.Sequential(Propagation([symmetric(adjacency), torch.eye(len(adjacency))], before, after), nn.ReLU())


def k_gnn(adjacency: torch.Tensor, before: int, after: int) -> nn.Module:
    """Morris et al., 2019, the layer for k = 1: itself and the sum over neighbours."""
    return Propagation([torch.eye(len(adjacency)), adjacency], before, after)


Layer = Callable[[torch.Tensor, int, int], nn.Module]
LAYERS: dict[str, Layer] = {
    "gat": Attention,
    "gcn": gcn,
    "gin": gin,
    "cheb": cheb,
    "sage": sage,
    "arma": arma,
    "graph": k_gnn,
    "fc": lambda adjacency, before, after: nn.Linear(before, after),
}
"""Of an adjacency matrix and the numbers of features before and after. A ``skip`` is none: it leaves all as it is."""
NAMES = (*LAYERS, "skip")


class Pixels(nn.Module):
    """Images [n, channels, h, w] → nodes [n, h w, channels + 2], with row and column between -1 and 1 beside the values
    (as the super-pixels of Dwivedi et al., 2023): a graph's nodes don't know where they are."""

    places: torch.Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        rows, columns = (torch.linspace(-1, 1, size) for size in (height, width))
        self.register_buffer("places", torch.cartesian_prod(rows, columns), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.flatten(2).transpose(1, 2), self.places.expand(len(x), -1, -1)], 2)


class GraphNetwork(nn.Module):
    """Layers, each fed by one before it; those that feed none are pooled over the nodes, side by side.

    Before each layer that computes something: normalization and ReLU, as in the benchmark's code, but over a node's
    features and not over a batch.
    """

    def __init__(
        self,
        first: nn.Module,
        features: int,
        adjacency: torch.Tensor,
        starts: Sequence[int],
        layers: Sequence[str],
        width: int,
        classes: int,
    ) -> None:
        super().__init__()
        self.first = nn.Sequential(first, nn.Linear(features, width))
        self.layers = nn.ModuleList(
            nn.Identity()
            if name == "skip"
            else nn.Sequential(nn.LayerNorm(width), nn.ReLU(), LAYERS[name](adjacency, width, width))
            for name in layers
        )
        self._starts = starts
        self._joined = _outputs(starts, layers)
        self.head = nn.Linear(len(self._joined) * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = [self.first(x)]
        for start, layer in zip(self._starts, self.layers, strict=True):
            found.append(layer(found[start]))
        joined = torch.cat([found[n] for n in self._joined], 2)
        return self.head(F.relu(joined).mean(1))  # type: ignore[no-any-return]


def _outputs(starts: Sequence[int], layers: Sequence[str]) -> list[int]:
    """Layers that feed none. As in the benchmark, skips from the input count for nothing beside others."""
    computes = [False]
    for start, name in zip(starts, layers, strict=True):
        computes.append(name != "skip" or computes[start])
    last = [n for n in range(1, len(starts) + 1) if n not in starts]
    return [n for n in last if computes[n]] or last


def nasbenchgraph(
    shape: tuple[int, ...],
    classes: int,
    structure: str,
    layers: list[str],
    width: int = 32,
    edges: list[list[int]] | None = None,
    dtype: str = "float32",
) -> nn.Module:
    """Graphs [n, nodes, features] to logits [n, classes]; or images [n, channels, h, w], whose pixels are nodes with an
    edge to each of the four next to them.

    Args:
        structure: a digit for each layer: the one that feeds it, 0 being the input and 1 the first layer.
        layers: gat, gcn, gin, cheb, sage, arma, graph, fc or skip.
        width: features of a node in each layer, a multiple of 4.
        edges: pairs of nodes, which are numbered from 0; absent: samples are images.
        dtype: float32 or float64.
    """
    if not isinstance(layers, list | tuple) or not layers:
        raise ValueError(f"layers must be a list with at least one layer, not {layers!r}")
    names = [one_of(f"layers[{n}]", name, NAMES) for n, name in enumerate(layers)]
    if not isinstance(structure, str) or not structure.isdecimal() or len(structure) != len(names):
        raise ValueError(
            f"structure must be a digit for each of the {len(names)} layers, such as '0123', not {structure!r}"
        )
    starts = [int(digit) for digit in structure]
    for n, start in enumerate(starts):
        if start > n:
            raise ValueError(f"structure: layer {n + 1} must be fed by one before it, 0 to {n}, not by {start}")
    if positive("width", width) % HEADS:
        raise ValueError(f"width must be a multiple of {HEADS}, not {width}")
    first: nn.Module
    if edges is None:
        if len(shape) != 3:
            raise ValueError(f"edges must be given, since the inputs have {len(shape)} dimensions and are no images")
        adjacency, first, features = grid(*shape[1:]), Pixels(*shape[1:]), shape[0] + 2
    else:
        if len(shape) != 2:
            raise ValueError(f"edges need inputs of nodes and features, not of {len(shape)} dimensions: remove edges")
        adjacency, first, features = connected(shape[0], edges), nn.Identity(), shape[1]
    return GraphNetwork(first, features, adjacency, starts, names, int(width), classes).to(floating(dtype))


def grid(height: int, width: int) -> torch.Tensor:
    """Adjacency of pixels, row by row."""
    rows, columns = (torch.arange(size) for size in (height, width))
    places = torch.cartesian_prod(rows, columns)
    return ((places[:, None] - places).abs().sum(2) == 1).float()


def connected(nodes: int, edges: object) -> torch.Tensor:
    """Adjacency of pairs of nodes.

    Raises:
        ValueError: they are none.
    """
    if not isinstance(edges, list | tuple):
        raise ValueError(f"edges must be a list of pairs of nodes, not {edges!r}")
    adjacency = torch.zeros(nodes, nodes)
    for n, pair in enumerate(edges):
        if (
            not isinstance(pair, list | tuple)
            or len(pair) != 2
            or not all(type(end) is int and 0 <= end < nodes for end in pair)
            or pair[0] == pair[1]
        ):
            raise ValueError(f"edges[{n}] must be two different nodes of 0 to {nodes - 1}, not {pair!r}")
        adjacency[pair[0], pair[1]] = adjacency[pair[1], pair[0]] = 1
    return adjacency
