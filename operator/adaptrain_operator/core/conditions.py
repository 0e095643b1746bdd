"""The conditions of a status."""

from typing import Literal

from adaptrain_api.objects import Condition
from adaptrain_api.text import printable

from adaptrain_operator.core.observed import moment


class Conditions:
    """The conditions of a status. A transition time changes only with the condition's truth."""

    def __init__(self, existing: list[Condition], generation: int, now: float) -> None:
        self._before = {condition.type: condition for condition in existing}
        self._now = dict(self._before)
        self._generation = generation
        self._time = moment(now)

    def get(self, type: str) -> Condition | None:
        return self._now.get(type)

    def true(self, type: str) -> bool:
        condition = self._now.get(type)
        return condition is not None and condition.status == "True"

    def set(self, type: str, truth: bool, reason: str, message: str) -> None:
        status: Literal["True", "False"] = "True" if truth else "False"
        old = self._before.get(type)
        same = old is not None and old.status == status
        self._now[type] = Condition(
            type=type,
            status=status,
            reason=reason,
            message=printable(message),
            last_transition_time=old.last_transition_time if old is not None and same else self._time,
            observed_generation=self._generation,
        )

    def clear(self, type: str, reason: str, message: str) -> None:
        """Say that something is over; of what never was, nothing is said."""
        if type in self._now:
            self.set(type, False, reason, message)

    def recover(self, type: str, reason: str, message: str) -> None:
        """Say that something is well again; of what always was, nothing is said."""
        if type in self._now:
            self.set(type, True, reason, message)

    def changed(self, type: str) -> Condition | None:
        """The condition if its truth or reason is new: worth an event."""
        old, new = self._before.get(type), self._now.get(type)
        if new is None or (old is not None and (old.status, old.reason) == (new.status, new.reason)):
            return None
        return new

    def list(self) -> list[Condition]:
        return [self._now[type] for type in sorted(self._now)]
