"""What every process of ours begins with."""

import ctypes
import logging
import os
import signal
import sys


def die_with_parent(parent: int) -> None:
    """A process that a local runner started ends with it, however the runner ends."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("adaptrain: the runner has ended")


def configure_logging() -> None:
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, stream=sys.stderr, force=True)
