"""ENAS (Pham et al., 2018): a controller draws cells; what it draws trains the shared weights, and is rewarded for how
well it does with them (section 2.2)."""

from typing import cast

import torch
from torch import nn

from adaptrain.search.oneshot.base import Found, Samples, Weights, halves, merit, ranked, seeded, train_drawn
from adaptrain.search.oneshot.supernet import supernet
from adaptrain.search.spaces.base import Architecture, Space
from adaptrain.search.spaces.cells import Darts
from adaptrain.search.spaces.nasbench201 import NasBench201

UNITS = 64
TEMPERATURE, SPAN = 5.0, 2.5
"""Logits z become SPAN tanh(z / TEMPERATURE), so that the controller can't settle before the weights say something
(Bello et al., 2017: what ENAS's code does to explore)."""
BASELINE = 0.95
"""Of the moving average of rewards, per step."""
ENTROPY = 1e-4
LAST = 50
"""Cells that are drawn in the end, among which the best is found."""


class Controller(nn.Module):
    """An LSTM that chooses in one dimension after the other, told what it chose before."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self._kinds = [dimension.kind for dimension in space.dimensions]
        sizes = {dimension.kind: len(dimension.choices) for dimension in space.dimensions}
        names = {kind: f"kind{n}" for n, kind in enumerate(sizes)}
        self._names = [names[kind] for kind in self._kinds]
        self.cell = nn.LSTMCell(UNITS, UNITS)
        self.start = nn.Parameter(0.1 * torch.randn(1, UNITS))
        self.logits = nn.ModuleDict({names[kind]: nn.Linear(UNITS, size) for kind, size in sizes.items()})
        self.embeddings = nn.ModuleDict({names[kind]: nn.Embedding(size, UNITS) for kind, size in sizes.items()})

    def forward(self) -> tuple[Architecture, torch.Tensor, torch.Tensor]:
        """Draws an architecture: it, its log probability, and the entropy of the choices."""
        state, x = None, self.start
        chosen, logs, entropies = [], [], []
        for name in self._names:
            state = self.cell(x, state)
            shares = (SPAN * torch.tanh(self.logits[name](state[0]) / TEMPERATURE)).log_softmax(1)
            drawn = torch.multinomial(shares.detach().exp(), 1)[:, 0]
            chosen.append(int(drawn))
            logs.append(shares[:, chosen[-1]])
            entropies.append(-(shares.exp() * shares).sum(1))
            x = self.embeddings[name](drawn)
        return tuple(chosen), torch.cat(logs).sum(), torch.cat(entropies).sum()

    @torch.no_grad()
    def draw(self) -> Architecture:
        drawn, _, _ = self()
        return cast(Architecture, drawn)


def enas(
    space: NasBench201 | Darts,
    samples: Samples,
    classes: int,
    epochs: int,
    seed: int,
    batch_size: int = 16,
    rate: float = 0.05,
    controller_steps: int = 4,
    controller_rate: float = 0.0035,
) -> Found:
    """The ranking is by the accuracy on the half that compares, with the shared weights.

    Args:
        samples: to train on, of which half compare architectures.
        epochs: passes over a half.
        rate: first learning rate of the shared weights.
        controller_steps: after each pass, one cell each.
    """
    with seeded(seed, "enas"):
        net = supernet(space, tuple(samples[0].shape[1:]), classes)
        controller = Controller(space)
        train, compare = halves(samples)
        weights = Weights(net, epochs, rate)
        adam = torch.optim.Adam(controller.parameters(), controller_rate)
        baseline = None
        for _ in range(epochs):
            train_drawn(net, weights, train, batch_size, controller.draw)
            for _ in range(controller_steps):
                drawn, log, entropy = controller()
                reward = merit(net, compare, drawn)
                baseline = reward if baseline is None else BASELINE * baseline + (1 - BASELINE) * reward
                adam.zero_grad()
                (-(reward - baseline) * log - ENTROPY * entropy).backward()
                adam.step()
        last = {controller.draw() for _ in range(LAST)}
        return ranked((one, merit(net, compare, one)) for one in sorted(last))
