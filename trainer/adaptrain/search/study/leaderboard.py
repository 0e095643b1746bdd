"""Which trials of a search are the best so far, and whose weights may be wanted."""

import math

from adaptrain_api.contracts.coordinator_api import TrialWeights
from adaptrain_api.search.job import ArchitectureSearchSpec

from adaptrain.search.algorithms.scalarization import ScalarizedSearcher, Searcher
from adaptrain.search.spaces.base import Architecture
from adaptrain.search.study.study import TrialRecord, violations

TOP = 10


class Leaderboard:
    """
    Args:
        searcher: what is told of each trial; where trials are noisy, it says which architectures are the best.
    """

    def __init__(self, spec: ArchitectureSearchSpec, searcher: Searcher) -> None:
        self._spec = spec
        self._searcher = searcher
        self.front: list[TrialRecord] = []
        """Trials that meet all constraints, and that none of those surpasses in one objective and equals in the
        others."""
        self._leaders: list[TrialRecord] = []
        """The best ones by the first objective, the best first."""
        self._best_of: dict[Architecture, TrialRecord] = {}
        """The best one of each architecture."""
        self._top: list[TrialRecord] | None = None

    def add(self, one: TrialRecord) -> None:
        """A trial ended. The searcher hears of it before anybody asks here."""
        self._top = None
        if one.state != "complete" or one.ranking is not None or self._breaks(one.metrics):
            return
        mine = values(self._spec, one)
        self._leaders = sorted([*self._leaders, one], key=lambda other: -values(self._spec, other)[0])[:TOP]
        best = self._best_of.setdefault(one.architecture, one)
        if mine[0] > values(self._spec, best)[0]:
            self._best_of[one.architecture] = one
        if not self._surpassed(mine):
            self.front = [other for other in self.front if not _surpasses(mine, values(self._spec, other))] + [one]

    @property
    def top(self) -> list[TrialRecord]:
        """The best trials that meet all constraints, the best first: by the first objective, or where that is noisy,
        what the algorithm thinks of their architectures, of each its best trial."""
        if self._top is None:
            ranked = self._searcher.ranked() if isinstance(self._searcher, ScalarizedSearcher) else []
            likely = [self._best_of[one] for one in ranked if one in self._best_of]
            self._top = likely[:TOP] or self._leaders
        return self._top

    @property
    def kept(self) -> set[str]:
        """Paths of weights that may be wanted: of the best trials, and of one for each point of the front."""
        front = self._front_weights.values() if len(self._spec.objectives) > 1 else ()
        best = (one.weights for one in (*self._leaders, *self.top))
        return {weights.path for weights in (*best, *front) if weights is not None}

    def wants_weights(self, one: TrialRecord) -> bool:
        """Whether the weights of a trial that would end so may be wanted: it would be one of the best, or give the
        front a point. If not now, then never: the others only get better."""
        if self._breaks(one.metrics):
            return False
        mine = values(self._spec, one)
        if len(self._leaders) < TOP or mine[0] > values(self._spec, self._leaders[-1])[0]:
            return True
        if len(self._spec.objectives) == 1 or mine in self._front_weights:
            return False
        return not self._surpassed(mine)

    @property
    def _front_weights(self) -> dict[tuple[float, ...], TrialWeights]:
        """Of each point of the front, those that a trial left first."""
        found: dict[tuple[float, ...], TrialWeights] = {}
        for one in self.front:
            if one.weights is not None:
                found.setdefault(values(self._spec, one), one.weights)
        return found

    def _breaks(self, metrics: dict[str, float]) -> bool:
        return any(v > 0 for v in violations(self._spec, metrics))

    def _surpassed(self, mine: tuple[float, ...]) -> bool:
        return any(_surpasses(values(self._spec, other), mine) for other in self.front)


def values(spec: ArchitectureSearchSpec, one: TrialRecord) -> tuple[float, ...]:
    """As algorithms see them: larger is better. A pruned trial is worth what it had reached."""
    found = []
    for n, objective in enumerate(spec.objectives):
        value = one.metrics.get(objective.metric, math.nan) if one.state == "complete" else math.nan
        if one.state == "pruned" and n == 0 and one.steps:
            value = one.steps[max(one.steps)]
        found.append(value if objective.goal == "maximize" else -value)
    return tuple(found)


def _surpasses(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))
