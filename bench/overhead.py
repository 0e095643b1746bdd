"""Elastic workers beside DistributedDataParallel: same model, same data. Value: median step time, seconds.

Both train the ResNet of ``--width`` with AdamW and the same augmentation in as many processes, none of them forked.
They run at the same time, each stopped while the other goes on, so that a machine whose speed drifts favours neither.
What counts is the median of several rounds of the median ratio of neighbouring turns: where its memory happens to lie
makes a process some per cent faster or slower for as long as it lives. One process is compared with the plain loop.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from adaptrain.data.augment import augment
from adaptrain.data.digits import digits
from adaptrain.data.rng import derive
from adaptrain.data.sampler import Sampler
from adaptrain.elastic.state.sample_log import read_times
from adaptrain.local.processes import LocalJob
from adaptrain.models.registry import build_model
from adaptrain_api.components import ModelSource
from adaptrain_api.phases.phase import Augmentation
from torch.nn.parallel import DistributedDataParallel

from bench.report import emit
from tests.e2e.local_jobs import job, running, step_of, wait_for

BATCH = 128
TURN_SECONDS = 0.8
"""Shorter than the time after which a worker that is not heard loses its place."""
WARM_STEPS = 40


@contextlib.contextmanager
def theirs(args: dict[str, int], workers: int, folder: Path) -> Iterator[list[int]]:
    """An ordinary loop that writes when it took each step; its processes."""
    spawn = multiprocessing.get_context("spawn")
    told = (args, f"file://{folder}/meet")
    started = [spawn.Process(target=_parallel, args=(*told, n, workers, folder / f"{n}")) for n in range(workers)]
    for process in started:
        process.start()
    try:
        wait_for("the peer's steps", lambda: len(_moments(folder / "0")) > WARM_STEPS)
        yield [process.pid or 0 for process in started]
    finally:
        for process in started:
            process.kill()
            process.join()


def _moments(path: Path) -> list[float]:
    return [float(line) for line in path.read_text().splitlines()] if path.exists() else []


def _parallel(args: dict[str, int], meet: str, rank: int, size: int, path: Path) -> None:
    torch.set_num_threads(1)
    data = digits()
    model = build_model(ModelSource(name="resnet", args=args), data)
    if size > 1:
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=size)
        model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sampler, how = Sampler(len(data.train), 0), Augmentation(shift_pixels=1)
    epoch, cursor = 0, 0
    model.train()
    with path.open("w", buffering=1) as file:
        while True:
            batch = sampler.batch(epoch, cursor, BATCH)
            ids = batch[rank::size]
            x, y = data.train.fetch(ids)
            x = augment(x, ids, how, derive(0, "augmentation", epoch))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            file.write(f"{time.time()}\n")
            cursor += len(batch)
            if cursor >= len(data.train):
                epoch, cursor = epoch + 1, 0


@contextlib.contextmanager
def ours(args: dict[str, int], workers: int, folder: Path) -> Iterator[list[int]]:
    """Elastic workers; they and their coordinator."""
    spec: dict[str, Any] = {"minimum": workers, "model": {"name": "resnet", "args": args}}
    with LocalJob(job(**spec, phase={"batch": {"size": BATCH}}), trace=folder, fork=False) as local:
        local.start_coordinator()
        for _ in range(workers):
            local.start_worker()
        running(local, workers)
        wait_for("our steps", lambda: step_of(local) > WARM_STEPS, local)
        assert local.coordinator is not None
        yield [*(process.pid or 0 for process in local.workers.values()), local.coordinator.pid]


def turn(pids: list[int]) -> tuple[float, float]:
    """Let processes go on for a turn, and stop them. Returns when, Unix time."""
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    began = time.time()
    time.sleep(TURN_SECONDS)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    return began, time.time()


def within(moments: list[float], turn: tuple[float, float]) -> float:
    """Median step of those that began and ended in a turn, seconds."""
    inside = [moment for moment in moments if turn[0] < moment < turn[1]]
    return statistics.median(b - a for a, b in itertools.pairwise(inside))


def measure(args: dict[str, int], workers: int, turns: int) -> list[tuple[float, float]]:
    """One round: the peer's and our own median step in each pair of turns, seconds."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        with theirs(args, workers, Path(one)) as peer_pids:
            for pid in peer_pids:
                os.kill(pid, signal.SIGSTOP)
            with ours(args, workers, Path(other)) as own_pids:
                for pid in own_pids:
                    os.kill(pid, signal.SIGSTOP)
                pairs = [(turn(peer_pids), turn(own_pids)) for _ in range(turns)]
            peer_moments = _moments(Path(one) / "0")
        own_moments = [moment for moment, _ in read_times(Path(other), "worker-0")]
    return [(within(peer_moments, theirs_), within(own_moments, ours_)) for theirs_, ours_ in pairs]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--turns", type=int, default=12, help="of each in a round")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    found = [
        measure({"depth": 8, "width": arguments.width}, arguments.workers, arguments.turns)
        for _ in range(arguments.rounds)
    ]
    peer, own = (statistics.median(each) for each in zip(*(pair for pairs in found for pair in pairs), strict=True))
    ratios = [statistics.median(b / a for a, b in pairs) for pairs in found]
    print(f"peer {peer * 1e3:.1f} ms, elastic {own * 1e3:.1f} ms; ratios {[round(r, 3) for r in ratios]}", flush=True)
    value = peer * statistics.median(ratios)
    name = "DistributedDataParallel" if arguments.workers > 1 else "plain PyTorch loop"
    emit("overhead", value, "s", name, peer, value <= 1.03 * peer and peer >= 0.02, workers=arguments.workers)
