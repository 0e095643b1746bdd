"""Architectures as models of their own: what a one-shot search is a guess of."""

import torch
import torch.nn.functional as F
from torch import nn

from adaptrain.models import BUILT_IN
from adaptrain.search.algorithms.auto import unlike
from adaptrain.search.oneshot.base import Found, Samples, batches, halves, ranked, seeded
from adaptrain.search.spaces.base import Architecture, Space

BATCH, RATE = 20, 3e-3


def trained(
    space: Space, architecture: Architecture, samples: Samples, classes: int, epochs: int, *seed: int | str
) -> nn.Module:
    """An architecture that was trained from scratch: AdamW with one cycle of its rate (Smith and Topin, 2019)."""
    named = space.model(architecture)
    assert named is not None
    x, y = samples
    with seeded(*seed, "standalone"):
        net = BUILT_IN[named["name"]](shape=tuple(x.shape[1:]), classes=classes, **named["args"])
        optimizer = torch.optim.AdamW(net.parameters(), RATE)
        passes = (batch for _ in range(epochs) for batch in batches((x, y), BATCH))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=epochs * -(-len(x) // BATCH))
        for own, classes_of in passes:
            optimizer.zero_grad()
            F.cross_entropy(net(own), classes_of).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return net.eval()


@torch.no_grad()
def loss_of(net: nn.Module, samples: Samples) -> float:
    """Mean cross-entropy."""
    return float(F.cross_entropy(net(samples[0]), samples[1]))


def finals(
    space: Space, found: Found, samples: Samples, classes: int, seed: int, among: int = 8, epochs: int = 40
) -> Found:
    """The first of a ranking, trained from scratch on either half of the data and compared on the other one.

    Shared weights tell good cells from bad ones, but hardly the good ones from each other: so candidates of a one-shot
    search are told apart by short trainings (Liu et al., 2019, section 3.1; Li and Talwalkar, 2019, section 4).

    Args:
        samples: those of the search.
        among: how many of the ranking; of those that compute the same, the first.
        epochs: passes over a half.
    """
    with seeded(seed, "finals"):
        one, other = halves(samples)
    scores = []
    for architecture in unlike(space, [one for one, _ in found.ranking], set())[:among]:
        losses = [
            loss_of(trained(space, architecture, train, classes, epochs, seed, n), compare)
            for n, (train, compare) in enumerate(((one, other), (other, one)))
        ]
        scores.append((architecture, -sum(losses) / len(losses)))
    return ranked(scores)
