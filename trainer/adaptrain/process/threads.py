"""Threads that a process can't do without."""

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

AGAIN_SECONDS = 0.2


def forever(name: str, work: Callable[[], None]) -> threading.Thread:
    """Run ``work`` in a thread until it returns. An error in it is logged, and it begins again: what one message or a
    want of descriptors did must not end what all later ones need."""

    def run() -> None:
        while True:
            try:
                return work()
            except Exception:
                log.exception("the thread %s failed, and begins again", name)
                time.sleep(AGAIN_SECONDS)

    thread = threading.Thread(target=run, daemon=True, name=name)
    thread.start()
    return thread
