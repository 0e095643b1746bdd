"""DARTS (Liu et al., 2019): operations weighted by a softmax, whose logits are trained on the other half of the data.

It collapses: skip connections help the supernet to train, and so they win, though a cell of them is a bad one. Here
they need not help (DARTS-: Chu et al., 2021, section 3.2): beside the operations of each edge there is an auxiliary
skip connection, which counts fully at first and nothing at last, and which no cell is left with. Nor is ``none`` ever
chosen: its logit only scales what is normalized afterwards, and so says nothing (Liu et al., 2019, section 2.4).
"""

import math

import torch
from torch import nn

from adaptrain.search.algorithms.oneshot import DartsMethod
from adaptrain.search.oneshot.base import Found, Run, Samples, batches, loss, ranked
from adaptrain.search.oneshot.supernet import NONE, SKIP, Supernet

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
        for own, other in both:
            ahead = float(self.sgd.param_groups[0]["lr"]) if method.second_order else 0.0
            self.alpha.grad = alpha_gradient(self.net, self.alpha, own, other, ahead)
            self._adam.step()
            losses.append(self.step(own, self.alpha.detach().softmax(2)))
        chosen = self.net.weights(self.net.derive(self._shares()))
        skips = float(chosen[..., self.net.operations.index(SKIP)].sum()) if SKIP in self.net.operations else 0.0
        return {"loss": sum(losses) / len(losses), "skips": skips}

    def conclude(self) -> Found:
        shares = self._shares()
        # The largest of logarithms with Gumbel noise is a draw by the shares (Gumbel, 1954).
        drawn = (self.net.derive(shares - torch.empty_like(shares).exponential_().log()) for _ in range(DRAWN))
        cells = dict.fromkeys((self.net.derive(shares), *drawn))
        return ranked((one, float((self.net.weights(one) * shares).sum())) for one in cells)

    def _shares(self) -> torch.Tensor:
        """Logarithms of the operations' shares."""
        shares = self.alpha.detach().log_softmax(2)
        shares[..., self.net.operations.index(NONE)] = NEVER
        return shares


def alpha_gradient(net: Supernet, alpha: torch.Tensor, train: Samples, compare: Samples, ahead: float) -> torch.Tensor:
    """Of the loss on ``compare`` after a step of the weights by ``ahead`` (ξ) on ``train``, with respect to ``alpha``:
    equations 7 and 8."""
    parameters = list(net.parameters())
    if ahead == 0:
        return torch.autograd.grad(loss(net, compare, alpha.softmax(2)), alpha)[0]
    present = [p.detach().clone() for p in parameters]

    def at(points: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for p, point in zip(parameters, points, strict=True):
                p.copy_(point)

    def of_weights(batch: Samples) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Gradients with respect to alpha, and to the weights."""
        own, *others = torch.autograd.grad(
            loss(net, batch, alpha.softmax(2)), [alpha, *parameters], materialize_grads=True
        )
        return own, others

    _, slope = of_weights(train)
    at([p - ahead * g for p, g in zip(present, slope, strict=True)])
    direct, direction = of_weights(compare)
    step = 0.01 / float(torch.cat([g.flatten() for g in direction]).norm())
    around = []
    for sign in (1, -1):
        at([p + sign * step * g for p, g in zip(present, direction, strict=True)])
        around.append(torch.autograd.grad(loss(net, train, alpha.softmax(2)), alpha)[0])
    at(present)
    return direct - ahead * (around[0] - around[1]) / (2 * step)
