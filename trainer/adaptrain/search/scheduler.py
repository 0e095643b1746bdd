"""Which evaluator tries what: a state machine without I/O or a clock, which the coordinator drives.

A trial is given out, and told once: by whoever has it, or, if that one is lost, by whoever gets it next. Numbers count
up, and no two trials that end have the same. What a lost evaluator had is given out again before anything new.
"""

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from adaptrain_api.contracts.coordinator_api import SearchEnd, TrialWeights
from adaptrain_api.search.job import ArchitectureSearchSpec, metrics_named

from adaptrain.search.algorithms.base import Proposal
from adaptrain.search.algorithms.oneshot import SUPERNET, OneShot, Ranking
from adaptrain.search.algorithms.pruners import Pruner
from adaptrain.search.algorithms.scalarization import Searcher
from adaptrain.search.spaces.base import Architecture
from adaptrain.search.study.leaderboard import Leaderboard, values
from adaptrain.search.study.study import State, TrialRecord, violations

RATE_WINDOW = 300.0
"""Seconds over which trials per minute are counted."""
RETURN_SECONDS = 3.0
"""So long after the first one evaluators may come back with what an earlier coordinator gave them."""
MOST_ATTEMPTS = 5
"""A trial that as many evaluators were lost with has failed: it may be what kills them."""
TRIES = 500


@dataclass
class Assignment:
    """A trial that is under way, or waits for somebody to take it."""

    number: int
    architecture: Architecture
    why: dict[str, Any]
    evaluator: str | None
    given: float
    attempts: int = 0
    """Evaluators that were lost with it."""
    steps: dict[int, float] = field(default_factory=dict)
    passes: int = 0
    """That a network which all architectures share has taken."""


class TrialScheduler:
    """
    Args:
        pruner: which trials are stopped early; None: none.
        history: what the study holds, in its order.
        known: trials of another search to learn from, which don't count.
        returning: somebody may come back with what an earlier coordinator gave out. Until that is over, nothing is
            given out, and the search goes on, even if its budget is spent: what comes back counts.
    """

    def __init__(
        self,
        spec: ArchitectureSearchSpec,
        searcher: Searcher,
        pruner: Pruner | None,
        history: list[TrialRecord],
        known: list[TrialRecord],
        returning: bool = False,
    ) -> None:
        self.spec = spec
        self.pending: dict[int, Assignment] = {}
        self.ended: dict[int, TrialRecord] = {}
        self.failed: list[TrialRecord] = []
        self.pruned = 0
        self.standings = Leaderboard(spec, searcher)
        self._exhausted = False
        self._returning = returning
        self._return_by: float | None = None
        self._searcher = searcher
        self._pruner = pruner
        self._sign = 1.0 if spec.objectives[0].goal == "maximize" else -1.0
        self._keys: set[Hashable] = set()
        self._next = 0
        self._began: float | None = None
        self._used = 0.0
        self._times: deque[float] = deque()
        for one in known:
            self._learn(one)
        for one in history:
            if pruner is not None:
                for step, value in one.steps.items():
                    pruner.report(one.number, step, self._sign * value)
            self._end(one)

    def greet(self, now: float) -> None:
        """An evaluator is here: if it is the first, the others can come as well from now on."""
        if self._return_by is None:
            self._return_by = now + RETURN_SECONDS

    def all_back(self) -> None:
        """Whoever had a trial of an earlier coordinator has come back with it."""
        self._returning = False

    def returning(self, now: float) -> bool:
        """Whether somebody may still come back with what an earlier coordinator gave out."""
        return self._returning and (self._return_by is None or now < self._return_by)

    def again(self, evaluator: str, now: float) -> Assignment | None:
        """A trial for an evaluator that somebody else has lost, if there is one; else the algorithm is asked for the
        ``next`` one, which takes time, and what it proposes is given out by ``give``.

        An evaluator that asks has no trial: what we think it has, it has lost.
        """
        self.lost(evaluator, now)
        if self.returning(now) or self.verdict(now) is not None:
            return None
        waiting = sorted(number for number, one in self.pending.items() if one.evaluator is None)
        if waiting:
            again = self.pending[waiting[0]]
            again.evaluator = evaluator
            self.begins_again(again.number, now)
            return again
        return None

    def begins_again(self, number: int, now: float) -> None:
        """A trial under way starts anew: what it has reported says nothing of its new run."""
        one = self.pending[number]
        one.given = now
        one.steps.clear()
        if self._pruner is not None:
            self._pruner.forget(number)

    def next(self, now: float) -> int | None:
        """Number of the next new trial; None: there shall be none, or none before it is known what is under way, or how
        the network that all share ranks architectures."""
        if SUPERNET in self.tried or self.returning(now) or self.verdict(now) is not None:
            return None
        if self._spent(now, len(self.ended) + len(self.pending)):
            return None
        while self._next in self.ended or self._next in self.pending:
            self._next += 1
        return self._next

    @property
    def tried(self) -> list[Architecture]:
        """What is under way, or waits for somebody to take it."""
        return [one.architecture for one in self.pending.values()]

    def give(self, evaluator: str | None, number: int, proposal: Proposal, now: float) -> Assignment | None:
        """Make a trial of what the algorithm asked for; None: there seems to be nothing left to try, or meanwhile the
        search ended or somebody came back with a trial of this number.

        Args:
            evaluator: who has it; None: it waits for somebody.
        """
        if number in self.ended or number in self.pending or self.verdict(now) is not None:
            return None
        new = self._new(number, proposal)
        if new is None:
            self._exhausted = True
            return None
        self._keys.add(self._key(new.architecture))
        given = Assignment(number, new.architecture, new.why, evaluator, now)
        self.pending[number] = given
        return given

    def _new(self, number: int, proposal: Proposal) -> Proposal | None:
        """What the algorithm asked for, or something like it that was not tried; None: there seems to be nothing."""
        if (
            proposal.architecture == SUPERNET
            or proposal.why.get("again")
            or self._key(proposal.architecture) not in self._keys
        ):
            return proposal
        space, rng = self._searcher.space, np.random.default_rng([self.spec.seed, number, 1])
        near = proposal.architecture
        for attempt in range(2 * TRIES):
            near = space.mutate(near, rng) if attempt < TRIES else space.random(rng)
            if self._key(near) not in self._keys:
                return Proposal(near, {**proposal.why, "instead_of": list(proposal.architecture)})
        return None

    def back(self, evaluator: str, number: int, architecture: Architecture, why: dict[str, Any], now: float) -> bool:
        """An evaluator came back with a trial that it has. Whether it shall go on: nobody else has it or told it."""
        if number in self.ended:
            return False
        has = self.pending.get(number)
        if has is None:
            self.pending[number] = Assignment(number, architecture, why, evaluator, now)
            self._keys.add(self._key(architecture))
            return True
        if has.evaluator not in (None, evaluator) or has.architecture != architecture:
            return False
        has.evaluator = evaluator
        return True

    def lost(self, evaluator: str, now: float, orderly: bool = False) -> list[TrialRecord]:
        """What it had is given out again; a trial that seems to kill its evaluators has failed, and is returned."""
        ended = []
        for one in list(self.pending.values()):
            if one.evaluator == evaluator:
                one.evaluator = None
                one.attempts += not orderly
                if one.attempts >= MOST_ATTEMPTS:
                    ended.append(self._fail(one, now))
        return ended

    def _fail(self, one: Assignment, now: float) -> TrialRecord:
        message = f"{one.attempts} evaluators were lost with it: see their pods; memory may be short"
        del self.pending[one.number]
        ended = TrialRecord(one.number, one.architecture, "failed", {}, {}, one.why, now - one.given, message, now)
        self._end(ended)
        return ended

    def report(self, evaluator: str, number: int, step: int, metrics: dict[str, float]) -> bool:
        """A trial's metrics on its way. Returns whether it shall be stopped."""
        one = self.pending.get(number)
        value = metrics.get(self.spec.objectives[0].metric)
        if one is None or one.evaluator != evaluator:
            return False
        if one.architecture == SUPERNET:
            one.passes = step
            return False
        if value is None:
            return False
        one.steps[step] = value
        return self._pruner is not None and self._pruner.report(number, step, self._sign * value)

    def tell(
        self,
        evaluator: str,
        number: int,
        state: State,
        metrics: dict[str, float],
        message: str,
        now: float,
        weights: TrialWeights | None = None,
        ranking: Ranking | None = None,
    ) -> TrialRecord | None:
        """A trial ended; None: that is known already, or somebody else has it now.

        A trial that lacks a metric of an objective or a constraint has failed, and so has the network that all share if
        it ranks nothing.
        """
        one = self.pending.get(number)
        if one is None or one.evaluator != evaluator:
            return None
        if one.architecture == SUPERNET:
            state = "complete" if state == "complete" and ranking else "failed"
        elif state == "complete":
            missing = [name for name in metrics_named(self.spec) if name not in metrics]
            if missing:
                reported = ", ".join(sorted(metrics)) or "none"
                state = "failed"
                message = (
                    f"the trial reported no finite {missing[0]}, which objectives or constraints name; it reported"
                    f" {reported}"
                )
        del self.pending[number]
        seconds = now - one.given
        found = weights, ranking if one.architecture == SUPERNET and state == "complete" else None
        ended = TrialRecord(
            number, one.architecture, state, metrics, dict(one.steps), one.why, seconds, message[-2000:], now, *found
        )
        self._end(ended)
        return ended

    def wants_weights(self, evaluator: str, number: int, metrics: dict[str, float]) -> bool:
        """Whether the weights of a trial that ends with these metrics may be wanted."""
        one = self.pending.get(number)
        if one is None or one.evaluator != evaluator or any(name not in metrics for name in metrics_named(self.spec)):
            return False
        return self.standings.wants_weights(TrialRecord(number, one.architecture, "complete", metrics))

    @property
    def running(self) -> int:
        """Trials that an evaluator has."""
        return len(self.busy)

    @property
    def busy(self) -> set[str]:
        """Evaluators that have a trial."""
        return {one.evaluator for one in self.pending.values() if one.evaluator is not None}

    def evaluators(self, now: float) -> int | None:
        """How many evaluators there is something to try for: what is under way, and what may be given out yet.

        Returns:
            At most as many as there may be; None: it isn't known yet what is under way.
        """
        if self.returning(now):
            return None
        most, under_way = self.spec.parallelism.max, len(self.pending)
        if self._exhausted or self._spent(now, len(self.ended) + under_way):
            return min(most, under_way)
        trials = self.spec.budget.trials
        return most if trials is None else min(most, trials - len(self.ended))

    @property
    def supernet(self) -> str | None:
        """How the network that all architectures share is getting on, in words; None: none is trained now."""
        for one in self.pending.values():
            if one.architecture == SUPERNET and isinstance(self._searcher, OneShot):
                waits = "" if one.evaluator is not None else "; an evaluator is waited for"
                return (
                    f"trial {one.number} trains the network that all cells share: {one.passes} of"
                    f" {self._searcher.method.epochs} passes{waits}"
                )
        return None

    def verdict(self, now: float) -> SearchEnd | None:
        """How the search ended, if it has."""
        if len(self.failed) > self.spec.max_failed_trials:
            last = self.failed[-1]
            return _failed(
                "TooManyFailedTrials",
                f"{len(self.failed)} trials failed, and maxFailedTrials is {self.spec.max_failed_trials}; the last one,"
                f" trial {last.number}: {last.message[-800:] or 'no reason was told'}",
            )
        if self.pending or self.returning(now) or not (self._exhausted or self._spent(now, len(self.ended))):
            return None
        if not any(one.state == "complete" and one.ranking is None for one in self.ended.values()):
            return _failed("NoTrialCompleted", "no trial completed: raise the budget, or see why the trials failed")
        if not self.standings.top:
            bounds = "; ".join(_bounds(self.spec))
            return _failed(
                "ConstraintsNotMet",
                f"none of {len(self.ended)} trials meets all constraints ({bounds}): relax them, or raise the budget",
            )
        what = "every architecture of the space was tried" if self._exhausted else "the budget is used up"
        message = f"{len(self.ended)} trials ended: {what}"
        return SearchEnd(outcome="complete", reason="SearchComplete", message=message)

    def per_minute(self, now: float) -> float:
        """Trials that ended a minute, over the last minutes."""
        while self._times and self._times[0] < now - RATE_WINDOW:
            self._times.popleft()
        if len(self._times) < 2:
            return 0.0
        return 60.0 * (len(self._times) - 1) / max(self._times[-1] - self._times[0], 1e-3)

    def eta(self, now: float) -> float | None:
        """Seconds left, if that can be told."""
        rate, trials = self.per_minute(now), self.spec.budget.trials
        if not rate or trials is None:
            return None
        return max(0, trials - len(self.ended)) * 60.0 / rate

    def _end(self, one: TrialRecord) -> None:
        if one.number in self.ended:
            return
        self.ended[one.number] = one
        self._times.append(one.ended)
        began = one.ended - one.seconds
        self._began = began if self._began is None else min(self._began, began)
        self._used += one.seconds
        if one.state == "failed":
            self.failed.append(one)
        elif one.state == "pruned":
            self.pruned += 1
        self.standings.add(one)
        self._learn(one)

    def _learn(self, one: TrialRecord) -> None:
        if one.architecture == SUPERNET:
            if one.ranking is not None and isinstance(self._searcher, OneShot):
                self._searcher.rank(one.ranking)
            return
        self._keys.add(self._key(one.architecture))
        broken = sum(max(0.0, v) for v in violations(self.spec, one.metrics)) if one.state == "complete" else 0.0
        self._searcher.tell(one.architecture, values(self.spec, one), broken)

    def _key(self, architecture: Architecture) -> Hashable:
        return self._searcher.space.key(architecture) if architecture != SUPERNET else SUPERNET

    def _spent(self, now: float, trials: int) -> bool:
        budget = self.spec.budget
        return (
            (budget.trials is not None and trials >= budget.trials)
            or (budget.seconds is not None and self._began is not None and now - self._began >= budget.seconds)
            or (budget.evaluator_seconds is not None and self._used >= budget.evaluator_seconds)
        )


def _failed(reason: str, message: str) -> SearchEnd:
    return SearchEnd(outcome="failed", reason=reason, message=message)


def _bounds(spec: ArchitectureSearchSpec) -> list[str]:
    found = []
    for one in spec.constraints:
        low = "" if one.at_least is None else f" ≥ {one.at_least:g}"
        high = "" if one.at_most is None else f" ≤ {one.at_most:g}"
        found.append(f"{one.metric}{low}{high}")
    return found
