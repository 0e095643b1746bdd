"""Where a process computes. No GPU is here: what NCCL does is played by what its sources say of it."""

import contextlib
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from adaptrain.elastic.collectives.broadcast import broadcast_tensors
from adaptrain.elastic.collectives.device import own_device
from adaptrain.elastic.collectives.process_group import ElasticProcessGroup, Links, ProcessGroupBroken
from adaptrain.elastic.membership.client import CoordinatorClient
from adaptrain.elastic.membership.socket_abort import SocketAbort
from adaptrain.errors import InvalidJob


class Nccl:
    """A group on GPUs. Its works complete when they were looked at three times, or when it is aborted."""

    def __init__(self, answers: bool) -> None:
        self.answers, self.aborted = answers, False

    def allreduce(self, tensor: Any) -> Any:
        looks = iter(range(10**6))

        def wait(timeout: Any) -> None:
            assert timeout is not None, "without a time-out it doesn't tell of failures"
            if self.aborted:
                raise RuntimeError("NCCL communicator was aborted")

        return SimpleNamespace(is_completed=lambda: self.aborted or (self.answers and next(looks) > 2), wait=wait)

    def abort(self) -> None:
        self.aborted = True


def group(nccl: Nccl, must_leave: bool) -> ElasticProcessGroup:
    control = SimpleNamespace(must_leave=False, should_leave=False, doing=lambda *_: contextlib.nullcontext())
    made = ElasticProcessGroup(
        cast(CoordinatorClient, control),
        SocketAbort(),
        1,
        0,
        2,
        Links(cast(Any, None), cast(Any, None), cast(Any, nccl)),
    )
    made.begin_sum(cast(Any, SimpleNamespace(is_cuda=True)))
    control.must_leave = must_leave
    return made


def test_what_is_on_gpus_is_summed_by_nccl() -> None:
    nccl = Nccl(answers=True)
    group(nccl, must_leave=False)._wait(cast(Any, SimpleNamespace(is_cuda=True)))
    assert not nccl.aborted


def test_nccl_is_aborted_when_somebody_is_lost() -> None:
    nccl = Nccl(answers=False)
    with pytest.raises(ProcessGroupBroken, match="told to leave"):
        group(nccl, must_leave=True)._wait(cast(Any, SimpleNamespace(is_cuda=True)))
    assert nccl.aborted


def test_a_state_on_two_kinds_of_device_is_sent() -> None:
    """As that of an optimizer, which counts its steps on the CPU."""
    sent: list[torch.Tensor] = []
    said = SimpleNamespace(rank=0, size=2, broadcast=lambda data, root, ahead: sent.append(data))
    broadcast_tensors(
        [torch.ones(2), torch.ones(2, device="meta"), torch.ones(2)], cast(ElasticProcessGroup, said), [0]
    )
    assert [(data.device.type, len(data)) for data in sent] == [("cpu", 16), ("meta", 8)]


def test_each_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert [own_device(rank, 2) for rank in range(2)] == [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert taken == [0, 1]
    with pytest.raises(InvalidJob, match="processesPerWorker is 3, but a worker has 2 GPUs"):
        own_device(0, 3)
