"""A worker joins another that tunes a large model. Value: the stall of the one that was there, seconds.

The peer is what it takes to send as many bytes over one loopback connection of the same machine. Most of the model is
not trained: it is sent like the rest, but the steps are short and alike, so that what a join adds to one can be told.
"""

import argparse
import multiprocessing
import socket
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
from adaptrain.elastic.state.sample_log import records
from adaptrain.local.processes import LocalJob

from bench.report import emit
from tests.e2e.local_jobs import job, running, step_of, wait_for

BAR = 1.3
STEP_SECONDS = 0.2
BEFORE = 20
"""Steps that the first worker takes alone."""
AFTER = 20
"""Steps that both take together."""


def stall(megabytes: int) -> float:
    """The gap in the first worker's steps in which the second joins, less the median step of both, seconds."""
    model = {"name": "bench.paced:tuned", "args": {"seconds": STEP_SECONDS, "megabytes": megabytes}}
    phase = {"optimizer": {"name": "sgd", "learningRate": 0.001}, "batch": {"size": 2}}
    with (
        tempfile.TemporaryDirectory() as scratch,
        LocalJob(job(model=model, phase=phase), trace=Path(scratch)) as local,
    ):
        local.start_coordinator()
        local.start_worker()
        running(local, 1)
        wait_for("its steps", lambda: step_of(local) >= BEFORE, local)
        local.start_worker()

        def together() -> list[tuple[float, int]] | None:
            steps = _steps(Path(scratch))
            return steps if sum(members == 2 for _, members in steps) > AFTER else None

        times = wait_for("steps together", together, local)
    joined = next(i for i, (_, members) in enumerate(times) if members == 2)
    gaps = [b - a for (a, _), (b, _) in pairwise(times)]
    return gaps[joined - 1] - statistics.median(gaps[joined:])


def _steps(trace: Path) -> list[tuple[float, int]]:
    """When the first worker applied each step, Unix time, and in a group of how many."""
    return [(said["time"], said["size"]) for said in records(trace)[0] if said["what"] == "applied"]


def raw(size: int) -> float:
    """Seconds to send so many bytes from one process's memory to another's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        other = multiprocessing.get_context("spawn").Process(target=_send, args=(server.getsockname()[1], size))
        other.start()
        connection, _ = server.accept()
        view = memoryview(torch.zeros(size, dtype=torch.uint8).numpy())
        connection.sendall(b"!")
        began, at = time.perf_counter(), 0
        while at < size:
            at += connection.recv_into(view[at:])
        took = time.perf_counter() - began
        other.join()
    return took


def _send(port: int, size: int) -> None:
    data = memoryview(torch.ones(size, dtype=torch.uint8).numpy())
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.recv(1)
        connection.sendall(data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1000, help="of all tensors that are sent")
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    size = arguments.megabytes * 10**6
    stalls, sent = [], []
    for _ in range(arguments.turns):
        sent.append(raw(size))
        stalls.append(stall(arguments.megabytes // 2))  # the model, and its best weights so far
        print(f"stall {stalls[-1]:.2f} s, raw {sent[-1]:.2f} s", flush=True)
    value, peer = statistics.median(stalls), statistics.median(sent)
    emit("join", value, "s", "the bytes over one loopback connection", peer, value <= BAR * peer, bytes=size)
