"""Where a process computes, and groups of GPUs.

NCCL, other than gloo, can be told to give up: ``abort()`` ends its kernels, and whoever waits. Nothing here was run on
GPUs by us; it was written after torch's ``ProcessGroupNCCL.cpp``:

- a work has "completed" also when it failed (``WorkNCCL::isCompleted``);
- ``wait()`` blocks the GPU's stream, not this thread; with a time-out it blocks this thread, tells of failures, and
  gives up the communicator when the time is over (``synchronizeInternal``). So completion is polled, then waited for;
- unless error handling is off, the watchdog ends the whole process when a peer is lost (``handleException``).
"""

import os
from datetime import timedelta
from typing import Protocol, cast

import torch
from torch.distributed import Store, Work, is_nccl_available

from adaptrain.errors import InvalidJob

NCCL = {
    # A lost peer is ours to handle: the watchdog would end this process.
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    # Neither its threads nor other members' may ask for the store once the group is formed: it is written in Python.
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
    # As long as gloo waits for members that never come.
    "TORCH_NCCL_NONBLOCKING_TIMEOUT": "30",
}
NEVER = timedelta(days=1000)
"""It is the coordinator that says when somebody is no longer waited for."""


class Collectives(Protocol):
    """What torch's stubs leave out of its groups."""

    def allreduce(self, tensor: torch.Tensor) -> Work: ...

    def broadcast(self, tensor: torch.Tensor, root: int) -> Work: ...

    def abort(self) -> None: ...


def own_device(rank: int = 0, size: int = 1) -> torch.device:
    """The device of one of a worker's ``size`` processes: a GPU of its own, or the CPU if there is none.

    Raises:
        InvalidJob: there are GPUs, but fewer than processes.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if (found := torch.cuda.device_count()) < size:
        raise InvalidJob(
            f"workers.processesPerWorker is {size}, but a worker has {found} GPUs: set it to {found}, or give"
            f" workers.resources.limits {size} of them"
        )
    torch.cuda.set_device(rank)
    return torch.device("cuda", rank)


def synchronize(device: torch.device) -> None:
    """Wait for what was begun on a device, but not for its collectives."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def connect_gpus(store: Store, name: str, rank: int, size: int, device: torch.device) -> Collectives | None:
    """A group for the tensors on members' GPUs; None where gloo is to serve them too.

    Raises:
        RuntimeError: somebody did not come.
    """
    if device.type != "cuda" or not is_nccl_available():
        return None
    from torch.distributed import PrefixStore, ProcessGroupNCCL  # torch for CPUs has none

    for name, value in NCCL.items():
        os.environ.setdefault(name, value)
    options = ProcessGroupNCCL.Options()
    options._timeout = NEVER
    options.config.blocking = 0
    group = ProcessGroupNCCL(PrefixStore(name, store), rank, size, options)
    group.eager_connect_single_device(device)
    return cast(Collectives, group)
