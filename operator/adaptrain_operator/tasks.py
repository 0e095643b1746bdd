"""Tasks that must not end: one that raises is logged, counted and begun again."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from adaptrain_operator import metrics

logger = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds between a task's end and its next start; doubled each time, from the first one again after a minute's run."""


async def forever(name: str, kind: str, work: Callable[[], Awaitable[None]]) -> None:
    """Do this work for ever.

    Args:
        name: of the task, in the log.
        kind: of the task, in the metrics, where a job's name must not be.
        work: begins the work.
    """
    ended = metrics.TASKS_ENDED.labels(kind)  # from the beginning, so that the first one shows as an increase
    loop, pause = asyncio.get_running_loop(), FIRST_PAUSE
    while True:
        began = loop.time()
        try:
            await work()
            logger.error("%s ended and is begun again", name)
        except Exception:
            logger.exception("%s failed and is begun again", name)
        ended.inc()
        if loop.time() - began > LONGEST_PAUSE:
            pause = FIRST_PAUSE
        await asyncio.sleep(pause)
        pause = min(LONGEST_PAUSE, 2 * pause)
