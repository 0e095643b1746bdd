"""The operator's time. Unix time as it was when the process started, and from then on by the monotonic clock: setting
the machine's clock moves no deadline. What another machine wrote is never compared with it: how long a state of a pod
or a Lease lasts is counted from when we saw it first."""

import time

_STARTED = time.time() - time.monotonic()


def now() -> float:
    """Seconds since the epoch."""
    return _STARTED + time.monotonic()
