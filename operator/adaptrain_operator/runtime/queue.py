"""A queue of keys: each at most once, each worked on by one worker at a time, each with a back-off of its own."""

import asyncio
import heapq
import time
from typing import Generic, TypeVar

K = TypeVar("K")

FIRST_DELAY, LONGEST_DELAY = 0.2, 60.0


class Queue(Generic[K]):
    """Adding a key that is queued already only makes it due earlier; one that is worked on is queued anew after."""

    def __init__(self) -> None:
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._serial = 0
        self._working: set[K] = set()
        self._again: dict[K, float] = {}
        self._failures: dict[K, int] = {}
        self._changed = asyncio.Event()

    def add(self, key: K, after: float = 0.0) -> None:
        """Make a key due ``after`` seconds from now, or earlier if it was going to be."""
        due = time.monotonic() + after
        if key in self._working:
            self._again[key] = min(due, self._again.get(key, due))
            return
        if self._due.get(key, due + 1) <= due:
            return
        self._due[key] = due
        self._serial += 1
        heapq.heappush(self._heap, (due, self._serial, key))
        self._changed.set()

    async def get(self) -> K:
        """The next key that is due; the caller must say ``done`` when through with it."""
        while True:
            now = time.monotonic()
            while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
                heapq.heappop(self._heap)
            if self._heap and self._heap[0][0] <= now:
                _, _, key = heapq.heappop(self._heap)
                del self._due[key]
                self._working.add(key)
                return key
            self._changed.clear()
            wait = self._heap[0][0] - now if self._heap else None
            try:
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def done(self, key: K) -> None:
        self._working.discard(key)
        due = self._again.pop(key, None)
        if due is not None:
            self.add(key, max(0.0, due - time.monotonic()))

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
        if not self._due:
            return 0.0
        return max(0.0, time.monotonic() - min(self._due.values()))

    def depth(self) -> int:
        now = time.monotonic()
        return sum(due <= now for due in self._due.values())
