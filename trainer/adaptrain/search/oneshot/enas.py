"""ENAS (Pham et al., 2018): a controller draws cells; what it draws trains the shared weights, and is rewarded for how
well it does with them (section 2.2).

On few data it settles early, on what needs few steps to be of use (cells of pools), and since it then trains nothing
else, nothing else is ever of more use. Here only half of the cells are its own: the others are drawn uniformly, those
that train the weights and those that are ranked (as all of them are in Bender et al., 2018).
"""

import math
from typing import cast

import numpy as np
import torch
from torch import nn

from adaptrain.search.algorithms.oneshot import EnasMethod
from adaptrain.search.oneshot.base import Found, Run, merit, ranked
from adaptrain.search.spaces.base import Architecture, Space

UNITS = 64
TEMPERATURE, SPAN = 5.0, 2.5
"""Logits z become SPAN tanh(z / TEMPERATURE), so that the controller can't settle before the weights say something
(Bello et al., 2017: what ENAS's code does to explore)."""
BASELINE = 0.95
"""Of the moving average of rewards, per step."""
ENTROPY = 1e-4
LAST = 50
"""Cells that are drawn in the end by the controller, and as many uniformly: the best is found among them."""


class Controller(nn.Module):
    """An LSTM that chooses in one dimension after the other, told what it chose before.

    Attributes:
        baseline: the moving average of its rewards; not a number before the first.
    """

    baseline: torch.Tensor

    def __init__(self, space: Space) -> None:
        super().__init__()
        self._kinds = [dimension.kind for dimension in space.dimensions]
        sizes = {dimension.kind: len(dimension.choices) for dimension in space.dimensions}
        names = {kind: f"kind{n}" for n, kind in enumerate(sizes)}
        self._names = [names[kind] for kind in self._kinds]
        self.register_buffer("baseline", torch.tensor(math.nan, dtype=torch.float64))
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


class EnasRun(Run):
    """The ranking is by the accuracy on the half that compares, with the shared weights."""

    method: EnasMethod

    def begin(self) -> None:
        self._controller = Controller(self.space)
        self._adam = torch.optim.Adam(self._controller.parameters(), self.method.controller_rate)
        self.parts |= {"controller": self._controller, "adam": self._adam}

    def one_pass(self) -> dict[str, float]:
        """``accuracy`` of its figures is the moving average of what the controller draws."""
        controller, rng = self._controller, np.random.default_rng([self.seed, self.passes])
        mean = self.train_drawn(lambda: self.explored(rng, controller.draw))
        for _ in range(self.method.controller_steps):
            drawn, log, entropy = controller()
            reward = merit(self.net, self.compare, drawn)
            before = float(controller.baseline)
            baseline = reward if math.isnan(before) else BASELINE * before + (1 - BASELINE) * reward
            controller.baseline.fill_(baseline)
            self._adam.zero_grad()
            (-(reward - baseline) * log - ENTROPY * entropy).backward()
            self._adam.step()
        return {"loss": mean, "accuracy": float(controller.baseline)}

    def conclude(self) -> Found:
        rng = np.random.default_rng(self.seed)
        last = {self._controller.draw() for _ in range(LAST)} | {self.space.random(rng) for _ in range(LAST)}
        return ranked((one, merit(self.net, self.compare, one)) for one in sorted(last))
