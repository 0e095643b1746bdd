"""Trials that are jobs of their own: the operator says how they go, and hears which there shall be. No I/O, no clock.

It always says all that it knows, so a word that is lost is said again; and a coordinator that takes over learns from
the first word what is under way. Before that it orders nothing, and ends nothing.
"""

from typing import Any

from adaptrain_api.contracts.coordinator_api import TrialOrder, TrialReport, TrialReports

from adaptrain.search.scheduler import TrialScheduler
from adaptrain.search.spaces.base import Space
from adaptrain.search.study.study import TrialRecord, as_architecture, finite

OPERATOR = "operator"
"""Who has all these trials, for the dispatch."""


class TrialJobs:
    """
    Args:
        dispatch: one to which trials are returning, until the first word.
        most: trials under way at once.
    """

    def __init__(self, dispatch: TrialScheduler, space: Space, most: int) -> None:
        self._dispatch, self._space, self._most = dispatch, space, most
        self._over: dict[str, int] = {}
        self._jobs: dict[int, str] = {}
        """Of trials under way, the uid of the newest job."""
        self._gone: set[str] = set()
        """Uids of jobs in whose places others were made."""

    def hear(self, told: TrialReports, now: float) -> list[TrialRecord]:
        """Take in how trials go. Returns those that have ended by that."""
        ended = [one for report in told.trials if (one := self._take_in(report, now)) is not None]
        self._dispatch.all_back()
        pending = self._dispatch.pending
        self._over = {
            report.job: report.number
            for report in told.trials
            if report.job is not None
            and (report.number not in pending or pending[report.number].architecture != _architecture(report))
        }
        return ended

    def _take_in(self, report: TrialReport, now: float) -> TrialRecord | None:
        number, architecture, dispatch = report.number, _architecture(report), self._dispatch
        if architecture is None:
            return None
        if report.job in self._gone:
            return None  # an operator that has just lost its lease may still say what was
        why = dict(report.given.get("why") or {})
        if not dispatch.back(OPERATOR, number, architecture, why, now):
            return None
        if report.job is not None and (before := self._jobs.get(number, report.job)) != report.job:
            self._gone.add(before)
            dispatch.begins_again(number, now)
        if report.job is not None:
            self._jobs[number] = report.job
        metrics = finite(report.metrics)
        if report.state != "running":
            return dispatch.tell(OPERATOR, number, report.state, metrics, report.message, now)
        if not metrics or report.step <= max(dispatch.pending[number].steps, default=0):
            return None  # heard before
        stop = dispatch.report(OPERATOR, number, report.step, metrics)
        return dispatch.tell(OPERATOR, number, "pruned", metrics, "", now) if stop else None

    def next(self, now: float) -> int | None:
        """Number of one more trial; None: there is no room, or nothing to try."""
        return self._dispatch.next(now) if len(self._dispatch.pending) < self._most else None

    def orders(self) -> list[TrialOrder]:
        """What is under way."""
        found = []
        for _, one in sorted(self._dispatch.pending.items()):
            choice = self._space.choice(one.architecture)
            found.append(
                TrialOrder(
                    number=one.number,
                    given={"architecture": one.architecture, "why": one.why},
                    model=choice.get("model"),
                    parameters=choice.get("parameters", {}),
                )
            )
        return found

    def done(self, unwritten: set[int]) -> list[str]:
        """Uids of jobs that the operator named and that are of no more use. What is not written still is."""
        return [job for job, number in self._over.items() if number not in unwritten]


def _architecture(report: TrialReport) -> Any:
    """None: it is none of ours; its job's annotation was changed by hand."""
    found = report.given.get("architecture")
    return as_architecture(found) if isinstance(found, list) else None
