"""A queue of keys: each at most once, each worked on by one worker at a time, each with a back-off of its own.

What only writes down how far a job has come waits in a lane of its own, of which few are worked on at once: it never
takes the place of what changes the world.
"""

import asyncio
import heapq
import time
from typing import Generic, TypeVar

K = TypeVar("K")

FIRST_DELAY, LONGEST_DELAY = 0.2, 60.0
SLACK = 64


class _Lane(Generic[K]):
    """Keys by when they are due."""

    def __init__(self) -> None:
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._serial = 0

    def _put(self, key: K, due: float) -> bool:
        """Whether the key is due earlier than it was."""
        if self._due.get(key, due + 1) <= due:
            return False
        self._due[key] = due
        self._serial += 1
        heapq.heappush(self._heap, (due, self._serial, key))
        # Entries that an earlier time has overtaken would otherwise stay until their own.
        if len(self._heap) > 2 * len(self._due) + SLACK:
            self._heap = [entry for entry in self._heap if self._due.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)
        return True

    def _next(self) -> float | None:
        """When the next key is due."""
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def _pop(self) -> K:
        """The key that ``_next`` is about."""
        _, _, key = heapq.heappop(self._heap)
        del self._due[key]
        return key

    def _drop(self, key: K, now: float) -> None:
        """Forget a key that is due."""
        if self._due.get(key, now + 1) <= now:
            del self._due[key]


class Queue(_Lane[K]):
    """Adding a key that is queued already only makes it due earlier; one that is worked on is queued anew after."""

    def __init__(self, aside: int = 4) -> None:
        """
        Args:
            aside: most keys of the second lane that are worked on at once.
        """
        super().__init__()
        self._aside: _Lane[K] = _Lane()
        self._most_aside = aside
        self._working: dict[K, bool] = {}
        """Whether a key that is worked on came from the second lane."""
        self._again: dict[tuple[K, bool], float] = {}
        self._failures: dict[K, int] = {}
        self._changed = asyncio.Event()

    def add(self, key: K, after: float = 0.0, aside: bool = False) -> None:
        """Make a key due ``after`` seconds from now, or earlier if it was going to be.

        Args:
            aside: nothing but its status is to be written.
        """
        self._add(key, time.monotonic() + after, aside)

    def _add(self, key: K, due: float, aside: bool) -> None:
        if key in self._working:
            self._again[key, aside] = min(due, self._again.get((key, aside), due))
        elif (self._aside if aside else self)._put(key, due):
            self._changed.set()

    async def get(self) -> K:
        """The next key that is due; the caller must say ``done`` when through with it."""
        while True:
            now = time.monotonic()
            due = self._next()
            later = self._aside._next() if sum(self._working.values()) < self._most_aside else None
            if due is not None and due <= now:
                return self._take(self._pop(), now, aside=False)
            if later is not None and later <= now:
                return self._take(self._aside._pop(), now, aside=True)
            self._changed.clear()
            wait = min((one - now for one in (due, later) if one is not None), default=None)
            try:
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def _take(self, key: K, now: float, aside: bool) -> K:
        """One decision covers what is due in either lane."""
        self._working[key] = aside
        self._drop(key, now)
        self._aside._drop(key, now)
        return key

    def done(self, key: K) -> None:
        if self._working.pop(key, False):
            self._changed.set()
        for aside in (False, True):
            due = self._again.pop((key, aside), None)
            if due is not None:
                self._add(key, due, aside)

    def retry(self, key: K) -> float:
        """Queue a key whose work failed; the delay doubles with every failure in a row."""
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(count, 12))
        self.add(key, delay)
        return delay

    def succeeded(self, key: K) -> None:
        self._failures.pop(key, None)

    def overdue(self) -> float:
        """Seconds that the most overdue key has waited for a worker: grows without bound when work is stuck."""
        due = [min(lane._due.values()) for lane in (self, self._aside) if lane._due]
        return max(0.0, time.monotonic() - min(due)) if due else 0.0

    def depth(self) -> int:
        now = time.monotonic()
        return sum(due <= now for lane in (self, self._aside) for due in lane._due.values())
