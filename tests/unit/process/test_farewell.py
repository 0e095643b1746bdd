"""SIGTERM asks a worker to leave, and ends the processes that a user's script starts."""

import subprocess
import sys

SCRIPT = """
import multiprocessing, signal, threading, time
from adaptrain.process.shutdown import ShutdownSignal

farewell = ShutdownSignal()
with multiprocessing.get_context("fork").Pool(1) as pool:
    pool.apply(abs, (1,))  # leaving the block sends SIGTERM to the pool's process, and waits for it
signal.raise_signal(signal.SIGTERM)
farewell.wait()
print("asked to leave")
"""


def test_a_workers_children_end_and_it_hears_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "asked to leave\n"), done.stderr
