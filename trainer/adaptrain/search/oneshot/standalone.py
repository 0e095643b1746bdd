"""Architectures as models of their own: what a one-shot search is a guess of."""

import math
import statistics

import torch
import torch.nn.functional as F
from torch import nn

from adaptrain.models.registry import BUILT_IN
from adaptrain.search.algorithms.bayesian.candidates import unlike
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
    space: Space, found: Found, samples: Samples, classes: int, seed: int, among: int = 16, epochs: int = 40
) -> Found:
    """The first of a ranking, trained from scratch on either half of the data and compared on the other one.

    Shared weights tell good cells from bad ones, but hardly the good ones from each other: so candidates of a one-shot
    search are told apart by short trainings (Liu et al., 2019, section 3.1; Li and Talwalkar, 2019, section 4). Half of
    them are left after each round, for twice as many splits of the data (Karnin et al., 2013: sequential halving).

    Args:
        samples: those of the search.
        among: how many of the ranking; of those that compute the same, the first.
        epochs: passes over a half.

    Returns:
        Those of the last round: what the best one beat at last.
    """
    left = unlike(space, [one for one, _ in found.ranking], set())[:among]
    losses: dict[Architecture, list[float]] = {architecture: [] for architecture in left}
    splits = 0
    while True:
        for split in range(splits, 2 * splits + 1):
            with seeded(seed, "finals", split):
                one, other = halves(samples)
            for architecture in left:
                for n, (train, compare) in enumerate(((one, other), (other, one))):
                    net = trained(space, architecture, train, classes, epochs, seed, split, n)
                    losses[architecture].append(loss_of(net, compare))
        splits = 2 * splits + 1
        finalists = ranked((architecture, -statistics.mean(losses[architecture])) for architecture in left)
        if len(left) <= 2:
            return finalists
        left = [architecture for architecture, _ in finalists.ranking[: math.ceil(len(left) / 2)]]
