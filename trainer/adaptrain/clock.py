"""Unix time that is never set: it goes on from what the machine's clock said when this process began."""

import time

_BEGAN = time.time() - time.monotonic()


def now() -> float:
    """Seconds. The difference of two is a duration, whatever is done to the machine's clock."""
    return _BEGAN + time.monotonic()
