"""An elastic worker beside the plain loop: same model, same data, one process. Value: median step time, seconds.

Both train the ResNet of ``--width`` with AdamW and the same augmentation; they take turns, so that a machine whose
speed drifts favours neither.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import torch
from adaptrain.data.augment import augment
from adaptrain.data.digits import digits
from adaptrain.elastic.sampler import Sampler
from adaptrain.elastic.trace import read_times
from adaptrain.local import LocalJob
from adaptrain.models import build_model
from adaptrain.seeds import derive
from adaptrain_api.training import Augmentation, ModelSource

from bench.report import emit
from tests.e2e.local_jobs import finished, job

STEPS, BATCH = 120, 128


def plain(args: dict[str, int]) -> float:
    """Median step of an ordinary loop, seconds."""
    torch.set_num_threads(1)
    data = digits()
    model = build_model(ModelSource(name="resnet", args=args), data)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sampler, how = Sampler(len(data.train), 0), Augmentation(shift_pixels=1)
    moments, epoch, cursor = [], 0, 0
    model.train()
    for _ in range(STEPS):
        ids = sampler.batch(epoch, cursor, BATCH)
        x, y = data.train.fetch(ids)
        x = augment(x, ids, how, derive(0, "augmentation", epoch))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        moments.append(time.perf_counter())
        cursor += len(ids)
        if cursor >= len(data.train):
            epoch, cursor = epoch + 1, 0
    return _median(moments)


def elastic(args: dict[str, int]) -> float:
    """Median step of a worker, seconds."""
    spec = {"model": {"name": "resnet", "args": args}, "phase": {"stop": {"steps": STEPS}, "batch": {"size": BATCH}}}
    with tempfile.TemporaryDirectory() as scratch, LocalJob(job(**spec), trace=Path(scratch)) as local:
        local.start_coordinator()
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
    arguments = parser.parse_args()
    args = {"depth": 8, "width": arguments.width}
    ours, theirs = [], []
    for _ in range(arguments.turns):
        theirs.append(plain(args))
        ours.append(elastic(args))
        print(f"plain {theirs[-1] * 1e3:.1f} ms, elastic {ours[-1] * 1e3:.1f} ms", flush=True)
    value, peer = statistics.median(ours), statistics.median(theirs)
    emit("overhead", value, "s", "plain PyTorch loop", peer, value <= 1.03 * peer and peer >= 0.02)
