"""SPOS (Guo et al., 2020): each step trains one cell, all with the same probability (section 3.3); then evolution looks
for the best with the weights as they are (section 3.4)."""

import numpy as np

from adaptrain.search.algorithms.evolution import RegularizedEvolution
from adaptrain.search.oneshot.base import Found, Samples, Weights, halves, merit, ranked, seeded, train_drawn
from adaptrain.search.oneshot.supernet import supernet
from adaptrain.search.spaces.cells import Darts
from adaptrain.search.spaces.nasbench201 import NasBench201


def spos(
    space: NasBench201 | Darts,
    samples: Samples,
    classes: int,
    epochs: int,
    seed: int,
    batch_size: int = 16,
    rate: float = 0.05,
    evaluations: int = 200,
) -> Found:
    """The ranking is by the accuracy on the half that compares, with the shared weights.

    Args:
        samples: to train on, of which half compare architectures.
        epochs: passes over a half.
        rate: first learning rate of the shared weights.
        evaluations: cells that evolution looks at.
    """
    rng = np.random.default_rng(seed)
    with seeded(seed, "spos"):
        net = supernet(space, tuple(samples[0].shape[1:]), classes)
        train, compare = halves(samples)
        weights = Weights(net, epochs, rate)
        for _ in range(epochs):
            train_drawn(net, weights, train, batch_size, lambda: space.random(rng))
        evolution = RegularizedEvolution(space, seed, crossover=0.5)
        for number in range(evaluations):
            proposed = evolution.ask(number).architecture
            evolution.tell(proposed, merit(net, compare, proposed))
    return ranked(dict.fromkeys(evolution.told))
