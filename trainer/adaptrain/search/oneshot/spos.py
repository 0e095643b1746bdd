"""SPOS (Guo et al., 2020): each step trains one cell, all with the same probability (section 3.3); then evolution looks
for the best with the weights as they are (section 3.4)."""

import numpy as np

from adaptrain.search.algorithms.evolution import RegularizedEvolution
from adaptrain.search.algorithms.oneshot import SposMethod
from adaptrain.search.oneshot.base import Found, Run, merit, ranked


class SposRun(Run):
    """The ranking is by the accuracy on the half that compares, with the shared weights."""

    method: SposMethod

    def one_pass(self) -> dict[str, float]:
        rng = np.random.default_rng([self.seed, self.passes])
        return {"loss": self.train_drawn(lambda: self.space.random(rng))}

    def conclude(self) -> Found:
        evolution = RegularizedEvolution(self.space, self.seed, crossover=0.5)
        for number in range(self.method.evaluations):
            proposed = evolution.ask(number).architecture
            evolution.tell(proposed, merit(self.net, self.compare, proposed))
        return ranked(dict.fromkeys(evolution.told))
