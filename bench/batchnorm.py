"""Batch normalization over two members beside DistributedDataParallel. Value: median step time, seconds.

torch's SyncBatchNorm takes tensors on GPUs only. On CPUs the peer is DDP with torch's own batch normalization, and
beside each layer all-reduces of as many numbers as SyncBatchNorm sends: count, mean and variance forward, two sums
backward.
Both take turns in the same processes, step by step.
"""

import argparse
import copy
import multiprocessing
import socket
import statistics
import time
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from adaptrain.elastic.collectives.process_group import RendezvousPoint, form
from adaptrain.elastic.collectives.rendezvous import Rendezvous
from adaptrain.elastic.membership.client import CoordinatorClient
from adaptrain.elastic.membership.socket_abort import SocketAbort
from adaptrain.elastic.state.replicated import ReplicatedState
from adaptrain.observability.metrics import WorkerMetrics
from adaptrain.rpc.ports import listen_on
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bench.report import emit

TOKEN = "what-members-know"
HOST, MEMBERS, BATCH, SIDE, WARM = "127.0.0.1", 2, 16, 64, 3
BAR = 1.1


class Sent(torch.autograd.Function):
    """What a layer's statistics cost to send."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(torch.zeros(2 * x.shape[1] + 1))
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(torch.zeros(2 * dy.shape[1]))
        return dy


def member(rank: int, port: int, steps: int, said: Any) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    store = dist.TCPStore(HOST, port, is_master=rank == 0, wait_for_workers=False)
    dist.init_process_group("gloo", store=dist.PrefixStore("ddp", store), rank=rank, world_size=MEMBERS)
    meeting_port = torch.zeros(1, dtype=torch.int64)
    if rank == 0:
        listening = listen_on(HOST, 0, MEMBERS)
        meeting_port[0] = Rendezvous(listening, TOKEN, WorkerMetrics("", "").refusals).port
    dist.broadcast(meeting_port, 0)
    control = SimpleNamespace(
        must_leave=False,
        should_leave=False,
        identity=SimpleNamespace(host=HOST),
        token=TOKEN,
        doing=lambda *_: nullcontext(),
    )
    meeting = RendezvousPoint("epoch/1", rank, MEMBERS, HOST, int(meeting_port), torch.device("cpu"))
    group = form(cast(CoordinatorClient, control), SocketAbort(), 1, meeting)
    model = timm.create_model("resnet18", num_classes=10)
    peer = copy.deepcopy(model)
    for layer in peer.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(lambda _, inputs: Sent.apply(*inputs))
    parallel = DistributedDataParallel(peer)
    optimizer = torch.optim.SGD(peer.parameters(), lr=0.01, momentum=0.9)
    state = ReplicatedState(model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9))
    x, y = torch.randn(BATCH, 3, SIDE, SIDE), torch.randint(0, 10, (BATCH,))

    def ours() -> None:
        state.gradients.zero()
        with state.statistics.step(group, counts=True, whole=True):
            state.gradients.add(F.cross_entropy(model(x), y) / MEMBERS)
            state.statistics.check()
            state.gradients.sum(group)
            state.step()

    def theirs() -> None:
        optimizer.zero_grad()
        F.cross_entropy(parallel(x), y).backward()
        optimizer.step()

    took: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(steps + WARM):
        for name, step in (("ours", ours), ("theirs", theirs)):
            dist.barrier()
            began = time.perf_counter()
            step()
            took[name].append(time.perf_counter() - began)
    said.put({name: times[WARM:] for name, times in took.items()})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=40)
    steps = parser.parse_args().steps
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    said = spawn.Queue()
    started = [spawn.Process(target=member, args=(rank, port, steps, said)) for rank in range(MEMBERS)]
    for process in started:
        process.start()
    took = said.get(timeout=600)
    for process in started:
        process.join()
    ratio = statistics.median(a / b for a, b in zip(took["ours"], took["theirs"], strict=True))
    ours, theirs = (statistics.median(took[name]) for name in ("ours", "theirs"))
    emit("batchnorm", ours, "s", "DDP with equal all-reduces", theirs, ratio <= BAR, median_ratio=ratio, steps=steps)


if __name__ == "__main__":
    main()
