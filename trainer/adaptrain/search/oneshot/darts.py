"""DARTS (Liu et al., 2019): operations weighted by a softmax, whose logits are trained on the other half of the data.

A mixture of all operations is no cell, and what is best in it need not be good by itself. So each step takes one cell,
drawn by the shares, through which the softmax learns as if it weighted it (GDAS: Dong and Yang, 2019).

The mixture itself, as in DARTS's paper, collapses: skip connections help the supernet to train, and so they win, though
a cell of them is a bad one. Here they need not help (DARTS-: Chu et al., 2021, section 3.2): beside the operations of
each edge there is an auxiliary skip connection, which counts fully at first and nothing at last, and which no cell is
left with. Nor is ``none`` ever chosen: its logit only scales what is normalized afterwards, and so says nothing (Liu et
al., 2019, section 2.4).
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from adaptrain.search.algorithms.oneshot import DartsMethod
from adaptrain.search.oneshot.base import Found, Run, Samples, batches, loss, ranked
from adaptrain.search.oneshot.supernet import NONE, SKIP, Supernet
from adaptrain.search.spaces.base import Architecture

Weigh = Callable[[torch.Tensor], torch.Tensor]
"""The operations' weights from their logits."""

DRAWN = 15
"""Cells that are ranked beside the one that is found."""
NEVER = -1e6
"""The logarithm of a share that counts as nothing; finite, since it is multiplied by 0 where it isn't chosen."""


class DartsRun(Run):
    """The ranking is by the product of the operations' shares: of the cell of the largest ones, and of cells that are
    drawn by them, which are the further from it the less the shares say of which one is best."""

    method: DartsMethod

    def begin(self) -> None:
        self.alpha = nn.Parameter(1e-3 * torch.randn(self.net.shape))
        self._adam = torch.optim.Adam([self.alpha], self.method.alpha_rate, betas=(0.5, 0.999), weight_decay=1e-3)
        self.parts |= {"alpha": nn.ParameterList([self.alpha]), "adam": self._adam}

    def one_pass(self) -> dict[str, float]:
        """``skips`` of its figures are the skip connections of the cells that would be derived now."""
        method, losses = self.method, []
        fades = 0.5 * (1 + math.cos(math.pi * self.passes / method.epochs))
        self.net.set_auxiliary(fades if method.auxiliary else 0.0)
        both = zip(batches(self.train, method.batch_size), batches(self.compare, method.batch_size), strict=False)
        rng = np.random.default_rng([self.seed, self.passes])
        for own, other in both:
            ahead = float(self.sgd.param_groups[0]["lr"]) if method.second_order else 0.0
            weigh = through(self.net, gumbel(self.alpha)) if method.single_path else mixture
            self.alpha.grad = alpha_gradient(self.net, self.alpha, own, other, ahead, weigh)
            self._adam.step()
            weights = (
                self.net.weights(self.explored(rng, self._draw)) if method.single_path else mixture(self.alpha.detach())
            )
            losses.append(self.step(own, weights))
        chosen = self.net.weights(self.net.derive(self._shares()))
        skips = float(chosen[..., self.net.operations.index(SKIP)].sum()) if SKIP in self.net.operations else 0.0
        return {"loss": sum(losses) / len(losses), "skips": skips}

    def conclude(self) -> Found:
        shares = self._shares()
        cells = dict.fromkeys((self.net.derive(shares), *(self._draw() for _ in range(DRAWN))))
        return ranked((one, float((self.net.weights(one) * shares).sum())) for one in cells)

    def _draw(self) -> Architecture:
        """By the shares."""
        shares = self._shares()
        return self.net.derive(shares + gumbel(shares))

    def _shares(self) -> torch.Tensor:
        return log_shares(self.net, self.alpha.detach())


def mixture(alpha: torch.Tensor) -> torch.Tensor:
    """All operations by their shares (Liu et al., 2019, equation 2)."""
    return alpha.softmax(2)


def through(net: Supernet, noise: torch.Tensor) -> Weigh:
    """One cell, drawn by the shares with this ``noise``: its operations count fully, with the softmax's gradient (Dong
    and Yang, 2019, equations 3 to 6, with temperature 1)."""

    def weigh(alpha: torch.Tensor) -> torch.Tensor:
        shares = log_shares(net, alpha) + noise
        soft = shares.softmax(2)
        return net.weights(net.derive(shares.detach())).to(soft) * (1 + soft - soft.detach())

    return weigh


def gumbel(like: torch.Tensor) -> torch.Tensor:
    """Noise: with it, the largest of the shares' logarithms is a draw by the shares (Gumbel, 1954)."""
    return -torch.empty_like(like).exponential_().log()


def log_shares(net: Supernet, alpha: torch.Tensor) -> torch.Tensor:
    """Logarithms of the operations' shares [kinds of cells, edges, operations]; ``none``'s is that of nothing."""
    none = torch.zeros(alpha.shape[2], dtype=torch.bool)
    none[net.operations.index(NONE)] = True
    return alpha.log_softmax(2).masked_fill(none, NEVER)


def alpha_gradient(
    net: Supernet, alpha: torch.Tensor, train: Samples, compare: Samples, ahead: float, weigh: Weigh
) -> torch.Tensor:
    """Of the loss on ``compare`` after a step of the weights by ``ahead`` (ξ) on ``train``, with respect to ``alpha``:
    equations 7 and 8."""
    parameters = list(net.parameters())
    if ahead == 0:
        return torch.autograd.grad(loss(net, compare, weigh(alpha)), alpha)[0]
    present = [p.detach().clone() for p in parameters]

    def at(points: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for p, point in zip(parameters, points, strict=True):
                p.copy_(point)

    def of_weights(batch: Samples) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Gradients with respect to alpha, and to the weights."""
        own, *others = torch.autograd.grad(loss(net, batch, weigh(alpha)), [alpha, *parameters], materialize_grads=True)
        return own, others

    _, slope = of_weights(train)
    at([p - ahead * g for p, g in zip(present, slope, strict=True)])
    direct, direction = of_weights(compare)
    step = 0.01 / float(torch.cat([g.flatten() for g in direction]).norm())
    around = []
    for sign in (1, -1):
        at([p + sign * step * g for p, g in zip(present, direction, strict=True)])
        around.append(torch.autograd.grad(loss(net, train, weigh(alpha)), alpha)[0])
    at(present)
    return direct - ahead * (around[0] - around[1]) / (2 * step)
