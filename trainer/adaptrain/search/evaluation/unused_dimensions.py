"""Dimensions of a space that the user's function never looks at: the search would vary them in vain."""

from collections.abc import Iterable, Iterator
from typing import Any

MODEL = "trial.model"
PATIENCE = 10
"""Trials after which it is said: a function may look at one choice only beside others."""


class TrackedChoices(dict[str, Any]):
    """What was chosen, which remembers what was looked at. To take all of it is to look at all of it."""

    def __init__(self, chosen: dict[str, Any]) -> None:
        super().__init__(chosen)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)

    def pop(self, name: str, *default: Any) -> Any:
        self.read.add(name)
        return super().pop(name, *default)

    def __iter__(self) -> Iterator[str]:
        self.read |= super().keys()
        return super().__iter__()

    def keys(self) -> Any:
        self.read |= super().keys()
        return super().keys()

    def values(self) -> Any:
        self.read |= super().keys()
        return super().values()

    def items(self) -> Any:
        self.read |= super().keys()
        return super().items()

    def copy(self) -> dict[str, Any]:
        return dict(self)


class UnusedDimensions:
    """What no trial has looked at so far."""

    def __init__(self) -> None:
        self._names: set[str] | None = None
        self._trials = 0

    def hear(self, names: Iterable[str]) -> None:
        """One more trial ended well, and left these alone."""
        self._names = set(names) if self._names is None else self._names & set(names)
        self._trials += 1

    @property
    def words(self) -> str | None:
        """What is wrong, and what to do; empty: nothing; None: it is too early to tell."""
        if self._names is None or (self._names and self._trials < PATIENCE):
            return None
        if not self._names:
            return ""
        names = ", ".join(sorted(self._names))
        return (
            f"none of {self._trials} trials looked at {names}: have trial.callable use trial.choices"
            f" {'(or trial.model) ' if MODEL in self._names else ''}for it, or take it out of space"
        )
