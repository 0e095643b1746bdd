"""How many coordinators are asked at once: a namespace's slow ones keep only its own waiting."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

PER_NAMESPACE = 32
SUSPECTED = 16
"""Of a namespace's coordinators that did not answer the last time: a lost node's must not hold up the others."""
IN_ALL = 512
"""Bounds open connections."""


class Slots:
    """One lane for each namespace's coordinators that answer, and one for those that didn't."""

    def __init__(self) -> None:
        self._all = asyncio.Semaphore(IN_ALL)
        self._lanes: dict[tuple[str, bool], asyncio.Semaphore] = {}
        self._users: Counter[tuple[str, bool]] = Counter()

    @asynccontextmanager
    async def of(self, namespace: str, suspected: bool) -> AsyncIterator[None]:
        """Wait for a slot, and hold it."""
        lane = namespace, suspected
        slots = self._lanes.setdefault(lane, asyncio.Semaphore(SUSPECTED if suspected else PER_NAMESPACE))
        self._users[lane] += 1
        try:
            async with slots, self._all:
                yield
        finally:
            self._users[lane] -= 1
            if not self._users[lane]:
                del self._users[lane], self._lanes[lane]
