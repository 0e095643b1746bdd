"""DARTS (Liu et al., 2019): operations weighted by a softmax, whose logits are trained on the other half of the data.

It collapses: skip connections help the supernet to train, and so they win, though a cell of them is a bad one. Here
they need not help (DARTS-: Chu et al., 2021, section 3.2): beside the operations of each edge there is an auxiliary
skip connection, which counts fully at first and nothing at last, and which no cell is left with. Nor is ``none`` ever
chosen: its logit only scales what is normalized afterwards, and so says nothing (Liu et al., 2019, section 2.4).
"""

import math

import torch

from adaptrain.search.oneshot.base import Found, Samples, Weights, batches, halves, loss, ranked, seeded
from adaptrain.search.oneshot.supernet import NONE, Supernet, supernet
from adaptrain.search.spaces.base import Architecture
from adaptrain.search.spaces.cells import Darts
from adaptrain.search.spaces.nasbench201 import NasBench201

NEVER = -1e6
"""The logarithm of a share that counts as nothing; finite, since it is multiplied by 0 where it isn't chosen."""


def darts(
    space: NasBench201 | Darts,
    samples: Samples,
    classes: int,
    epochs: int,
    seed: int,
    second_order: bool = True,
    auxiliary: bool = True,
    batch_size: int = 16,
    rate: float = 0.025,
    alpha_rate: float = 0.02,
) -> Found:
    """The ranking is by the product of the operations' shares: of what is found, and of its neighbours.

    Args:
        samples: to train on, of which half compare architectures.
        epochs: passes over a half.
        second_order: the weights' next step counts for the logits (equation 7), else their present ones do (equation 6
            with ξ = 0).
        auxiliary: skip connections as above.
        rate: first learning rate of the weights.
        alpha_rate: learning rate of the logits.
    """
    with seeded(seed, "darts"):
        net = supernet(space, tuple(samples[0].shape[1:]), classes)
        train, compare = halves(samples)
        weights = Weights(net, epochs, rate)
        alpha = (1e-3 * torch.randn(net.shape)).requires_grad_()
        adam = torch.optim.Adam([alpha], alpha_rate, betas=(0.5, 0.999), weight_decay=1e-3)
        for epoch in range(epochs):
            net.set_auxiliary(0.5 * (1 + math.cos(math.pi * epoch / epochs)) if auxiliary else 0.0)
            for own, other in zip(batches(train, batch_size), batches(compare, batch_size), strict=False):
                ahead = weights.rate if second_order else 0.0
                alpha.grad = alpha_gradient(net, alpha, own, other, ahead)
                adam.step()
                weights.step(own, alpha.detach().softmax(2))
            weights.end_epoch()
        shares = alpha.detach().log_softmax(2)
        shares[..., net.operations.index(NONE)] = NEVER
        best = net.derive(shares)
        return ranked((one, _share(net, shares, one)) for one in (best, *space.neighbours(best)))


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


def _share(net: Supernet, shares: torch.Tensor, architecture: Architecture) -> float:
    return float((net.weights(architecture) * shares).sum())
