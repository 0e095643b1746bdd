"""Elastic workers beside DistributedDataParallel: same model, same data. Value: median step time, seconds.

Both train the ResNet of ``--width`` with AdamW and the same augmentation in as many processes; they take turns, so that
a machine whose speed drifts favours neither. One process is compared with the plain loop.
"""

import argparse
import itertools
import multiprocessing
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from adaptrain.data.augment import augment
from adaptrain.data.digits import digits
from adaptrain.elastic.sampler import Sampler
from adaptrain.elastic.trace import read_times
from adaptrain.local import LocalJob
from adaptrain.models import build_model
from adaptrain.seeds import derive
from adaptrain_api.training import Augmentation, ModelSource
from torch.nn.parallel import DistributedDataParallel

from bench.report import emit
from tests.e2e.local_jobs import finished, job

STEPS, BATCH = 120, 128


def theirs(args: dict[str, int], workers: int) -> float:
    """Median step of an ordinary loop, seconds."""
    if workers == 1:
        return plain(args)
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch:
        pipes = [spawn.Pipe() for _ in range(workers)]
        started = [
            spawn.Process(target=_parallel, args=(args, f"file://{scratch}/meet", rank, workers, pipe[1]))
            for rank, pipe in enumerate(pipes)
        ]
        for process in started:
            process.start()
        took: list[float] = [pipe[0].recv() for pipe in pipes]
        for process in started:
            process.join()
    return took[0]


def _parallel(args: dict[str, int], meet: str, rank: int, size: int, told: Connection) -> None:
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=size)
    told.send(plain(args, rank, size))
    dist.destroy_process_group()


def plain(args: dict[str, int], rank: int = 0, size: int = 1) -> float:
    """Median step of one process of an ordinary loop, seconds."""
    torch.set_num_threads(1)
    data = digits()
    model = build_model(ModelSource(name="resnet", args=args), data)
    if size > 1:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sampler, how = Sampler(len(data.train), 0), Augmentation(shift_pixels=1)
    moments, epoch, cursor = [], 0, 0
    model.train()
    for _ in range(STEPS):
        batch = sampler.batch(epoch, cursor, BATCH)
        ids = batch[rank::size]
        x, y = data.train.fetch(ids)
        x = augment(x, ids, how, derive(0, "augmentation", epoch))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        moments.append(time.perf_counter())
        cursor += len(batch)
        if cursor >= len(data.train):
            epoch, cursor = epoch + 1, 0
    return _median(moments)


def ours(args: dict[str, int], workers: int) -> float:
    """Median step of a worker, seconds."""
    spec: dict[str, Any] = {"minimum": workers}
    spec |= {"model": {"name": "resnet", "args": args}, "phase": {"stop": {"steps": STEPS}, "batch": {"size": BATCH}}}
    with tempfile.TemporaryDirectory() as scratch, LocalJob(job(**spec), trace=Path(scratch)) as local:
        local.start_coordinator()
        for _ in range(workers):
            local.start_worker()
        finished(local)
        return _median([t for t, _ in read_times(Path(scratch), "worker-0")])


def _median(moments: list[float]) -> float:
    gaps = [b - a for a, b in itertools.pairwise(moments)]
    return statistics.median(gaps[len(gaps) // 5 :])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=24)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    args = {"depth": 8, "width": arguments.width}
    own, peers = [], []
    for _ in range(arguments.turns):
        peers.append(theirs(args, arguments.workers))
        own.append(ours(args, arguments.workers))
        print(f"peer {peers[-1] * 1e3:.1f} ms, elastic {own[-1] * 1e3:.1f} ms", flush=True)
    value, peer = statistics.median(own), statistics.median(peers)
    name = "DistributedDataParallel" if arguments.workers > 1 else "plain PyTorch loop"
    emit("overhead", value, "s", name, peer, value <= 1.03 * peer and peer >= 0.02, workers=arguments.workers)
