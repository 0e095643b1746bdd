"""How long a checkpoint of 1 GB keeps the training loop from its work. Value: seconds for each checkpoint.

Three loops take turns: adaptrain's, ``dcp.async_save``, and ``dcp.async_save`` with its asynchronous stager. All train
the same model with the same optimizer; a step waits 0.2 s, as for an accelerator. The loop is blocked while it is in
the call that begins a checkpoint, and while it waits to change the state because that is still being copied.
``slowed`` is all that a checkpoint costs: the time of the steps from its begin to its end, less as many undisturbed
ones, which on a machine with few cores is mostly a matter of sharing them. Ours takes digests, and verifies them in
loading.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from adaptrain.elastic.checkpoint.manager import Checkpoints, Policy
from adaptrain.elastic.membership.client import CoordinatorClient
from adaptrain.elastic.state.replicated import ReplicatedState
from adaptrain.elastic.storage.directory import Directory
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from bench.report import emit

COMPUTE_SECONDS = 0.2
LAYERS = 16
RATIO, BEST_RATIO, LOAD_RATIO = 0.4, 1.0, 1.2


class Cost(NamedTuple):
    """Of one checkpoint, seconds."""

    blocked: float
    slowed: float


def make(megabytes: int) -> ReplicatedState:
    """Parameters, best weights and AdamW's two moments: a quarter of the megabytes each."""
    width = int((megabytes * 2**20 / 4 / 4 / LAYERS) ** 0.5)
    model = torch.nn.Sequential(*(torch.nn.Linear(width, width, bias=False) for _ in range(LAYERS)))
    return ReplicatedState(model, torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=False))


class Loop:
    """Takes steps, and tells how long a checkpoint blocked and slowed it."""

    def __init__(self, state: ReplicatedState) -> None:
        self._state = state
        self._usual = 0.0

    def steps(self, go_on: Callable[[], bool], begin: Callable[[], None], settle: Callable[[], None]) -> Cost:
        """Begin a checkpoint, and take steps until it has ended."""
        began, count, blocked = time.perf_counter(), 0, _timed(begin)
        while go_on() or count < 1:
            time.sleep(COMPUTE_SECONDS)
            blocked += _timed(settle)
            self._state.step()
            count += 1
        return Cost(blocked, time.perf_counter() - began - count * self._usual)

    def warm(self) -> None:
        self._state.step()
        times = []
        for _ in range(8):
            began = time.perf_counter()
            time.sleep(COMPUTE_SECONDS)
            self._state.step()
            times.append(time.perf_counter() - began)
        self._usual = statistics.median(times)


def _timed(what: Callable[[], None]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def ours(loop: Loop, state: ReplicatedState, checkpoints: Checkpoints) -> Cost:
    state.counters.step += 1

    def begin() -> None:
        checkpoints._due = 0.0
        checkpoints.maybe_save(state)

    return loop.steps(lambda: checkpoints._busy, begin, state._wait_for_snapshot)


def theirs(loop: Loop, state: ReplicatedState, folder: Path, stager: DefaultStager | None) -> Cost:
    said: list[Any] = []

    def begin() -> None:
        more = {} if stager is None else {"async_stager": stager}
        writer = dcp.FileSystemWriter(folder, sync_files=True)
        said.append(dcp.async_save(dict(state.tensors()), storage_writer=writer, **more))

    def settle() -> None:
        if stager is not None:
            said[0].staging_completion.result()

    def upload() -> Any:
        return said[0] if stager is None else said[0].upload_completion

    cost = loop.steps(lambda: not upload().done(), begin, settle)
    upload().result()
    return cost


def loads(ours_at: Path, theirs_at: Path, state: ReplicatedState, checkpoints: Checkpoints) -> tuple[float, float]:
    began = time.perf_counter()
    assert checkpoints.load(state), f"nothing to load in {ours_at}"
    own = time.perf_counter() - began
    began = time.perf_counter()
    tensors = {name: torch.empty_like(t) for name, t in state.tensors().items()}
    dcp.load(tensors, storage_reader=dcp.FileSystemReader(theirs_at), no_dist=True)
    for name, t in state.tensors().items():
        t.copy_(tensors[name])
    return own, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    dist.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
    state = make(arguments.megabytes)
    loop = Loop(state)
    found: dict[str, list[float]] = {}
    stager = DefaultStager(StagingOptions(use_pinned_memory=False, use_shared_memory=True, use_async_staging=True,
                                          use_non_blocking_copy=False))  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch)
        epoch = (1 << 32) + 1
        control = SimpleNamespace(
            epoch=epoch, may_commit=True, connected=True, note=lambda _: None, doing=lambda *_: nullcontext()
        )
        checkpoints = Checkpoints(Directory(here / "ours"), Policy(1e9, keep=2), cast(CoordinatorClient, control))
        for turn in range(arguments.turns + 1):
            loop.warm()
            default, staged = here / f"default-{turn % 2}", here / f"staged-{turn % 2}"
            costs = {
                "adaptrain": ours(loop, state, checkpoints),
                "async_save": theirs(loop, state, default, None),
                "stager": theirs(loop, state, staged, stager),
            }
            took = {name: cost.blocked for name, cost in costs.items()}
            took |= {f"{name}_slowed": cost.slowed for name, cost in costs.items()}
            took["load"], took["dcp_load"] = loads(here / "ours", default, state, checkpoints)
            print({name: round(seconds, 3) for name, seconds in took.items()}, flush=True)
            if turn:  # the first one makes the buffers
                for name, seconds in took.items():
                    found.setdefault(name, []).append(seconds)
    median = {name: statistics.median(seconds) for name, seconds in found.items()}
    value, peer = median.pop("adaptrain"), median.pop("async_save")
    quick = value <= RATIO * peer or (median["stager"] <= RATIO * peer and value <= BEST_RATIO * median["stager"])
    ok = quick and median["load"] <= LOAD_RATIO * median["dcp_load"]
    emit("checkpoint", value, "s", "dcp.async_save", peer, ok, **median)


if __name__ == "__main__":
    main()
