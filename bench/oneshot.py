"""DARTS and ENAS on 100 images of digits: the cell that each finds, beside 10 random cells of the space.

All cells are trained from scratch as models of their own, on the same images with the same budget, several times each;
what counts is the mean loss on the validation split, which no search sees. Value: how many of the 10 random cells the
found one beats, mean over seeds, of the method that beats fewer.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from adaptrain.data.digits import digits
from adaptrain.data.rng import derive
from adaptrain.search.algorithms.oneshot import DartsMethod, EnasMethod
from adaptrain.search.evaluation.supernet_trial import RUNS
from adaptrain.search.oneshot.base import Samples, ranked, search
from adaptrain.search.oneshot.standalone import finals, loss_of, trained
from adaptrain.search.spaces.base import Architecture
from adaptrain.search.spaces.nasbench201 import NasBench201

from bench.report import emit

SPACE = NasBench201(cells=1, width=16)
"""Where cells differ: by 0.055 from cell to cell (standard deviation, without those that compute nothing) and by 0.036
from training to training. Of DARTS's cells, as small ones as this benchmark has time for, it is 0.07 and 0.10."""
IMAGES, CLASSES, RANDOM, BAR = 100, 10, 10, 9
METHODS = {"DARTS": DartsMethod(), "ENAS": EnasMethod()}
SEARCHES = {"DARTS": 4, "ENAS": 1}
"""DARTS is run four times, and the best of what it finds is taken (Liu et al., 2019, section 3.1)."""
CANDIDATES = {"DARTS": 8, "ENAS": 16}
"""The first of each search, that short trainings decide between. Cells that shares are sure of differ less than others,
and so more of them are needed for the same gain."""
EPOCHS, TRAININGS = 40, 9
"""So many because cells differ hardly more than their trainings do."""
FIRST_SEED = 5000
"""Settings were chosen on smaller ones."""


def images(seed: int) -> Samples:
    data = digits().train
    return data.fetch(torch.from_numpy(np.random.default_rng(derive(seed, "images")).permutation(len(data))[:IMAGES]))


def loss(cell: Architecture, samples: Samples, seed: int) -> float:
    """Of a cell on the validation split, after training from scratch."""
    validation = digits().validation
    every = validation.fetch(torch.arange(len(validation)))
    nets = (trained(SPACE, cell, samples, CLASSES, EPOCHS, seed, n) for n in range(TRAININGS))
    return statistics.mean(loss_of(net, every) for net in nets)


def first(name: str, samples: Samples, seed: int, part: int) -> list[tuple[Architecture, float]]:
    """Of the ranking of one search."""
    method = METHODS[name]
    run = RUNS[method.name](SPACE, samples, CLASSES, derive(seed, part), method)
    return search(run).ranking[: CANDIDATES[name]]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=list(METHODS), choices=METHODS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    beaten: dict[str, list[int]] = {name: [] for name in arguments.only}
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        samples, rng = images(seed), np.random.default_rng(seed)
        others = sorted(loss(SPACE.random(rng), samples, seed) for _ in range(RANDOM))
        print(f"seed {seed}: random cells {' '.join(f'{one:.3f}' for one in others)}", flush=True)
        for name in arguments.only:
            began = time.process_time()
            candidates = ranked(one for part in range(SEARCHES[name]) for one in first(name, samples, seed, part))
            found = finals(SPACE, candidates, samples, CLASSES, seed, len(candidates.ranking)).architecture
            took = time.process_time() - began
            own = loss(found, samples, seed)
            beaten[name].append(sum(own < one for one in others))
            print(f"  {name:>5} {own:.3f} beats {beaten[name][-1]}, {took:.0f} s to search, {found}", flush=True)
    means = {name: statistics.mean(counts) for name, counts in beaten.items()}
    last = min(means, key=lambda name: means[name])
    emit("oneshot", means[last], f"of {RANDOM} random cells", "bar", BAR, means[last] >= BAR, last=last, beaten=beaten)
