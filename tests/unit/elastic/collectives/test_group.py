"""A group whose other member is lost in the middle of a collective."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from adaptrain.elastic.collectives.process_group import (
    Abandoned,
    ElasticProcessGroup,
    ProcessGroupBroken,
    RendezvousPoint,
    form,
)
from adaptrain.elastic.collectives.rendezvous import Rendezvous
from adaptrain.elastic.membership.arrival import STORE_BACKLOG
from adaptrain.elastic.membership.client import CoordinatorClient
from adaptrain.elastic.membership.socket_abort import SocketAbort
from adaptrain.observability.metrics import WorkerMetrics
from adaptrain.rpc.ports import listen_on

ELEMENTS = 16_000_000
"""64 MB: more than the sockets between two members hold."""
HOST = "127.0.0.1"
TOKEN = "what-members-know"
Act = Callable[[ElasticProcessGroup, torch.Tensor], None]


def control() -> Any:
    return SimpleNamespace(
        must_leave=False,
        should_leave=False,
        identity=SimpleNamespace(host=HOST),
        token=TOKEN,
        doing=lambda *_: contextlib.nullcontext(),
    )


def rendezvous() -> Rendezvous:
    return Rendezvous(listen_on(HOST, 0, STORE_BACKLOG), TOKEN, WorkerMetrics("", "").refusals)


def meet(said: Any, rank: int, port: int, size: int = 2) -> ElasticProcessGroup:
    place = RendezvousPoint("epoch/1", rank, size, HOST, port, torch.device("cpu"))
    return form(cast(CoordinatorClient, said), SocketAbort(), 1, place)


def send(group: ElasticProcessGroup, tensor: torch.Tensor) -> None:
    group.broadcast(tensor, 0)


def add(group: ElasticProcessGroup, tensor: torch.Tensor) -> None:
    *early, last = tensor.chunk(4)
    for part in early:
        group.begin_sum(part)
    group.sum(last)


def take_part(act: Act, port: int) -> None:
    group = meet(control(), 1, port)
    tensor = torch.zeros(ELEMENTS)
    while True:
        act(group, tensor)


@pytest.mark.parametrize("act", [send, add])
@pytest.mark.parametrize("turn", range(2))
def test_a_loss_while_much_is_on_its_way_is_noticed(turn: int, act: Act) -> None:
    store = rendezvous()
    other = multiprocessing.get_context("spawn").Process(target=take_part, args=(act, store.port))
    other.start()
    said, sent, broken = control(), threading.Event(), threading.Event()

    def run() -> None:
        group = meet(said, 0, store.port)
        tensor = torch.zeros(ELEMENTS)
        try:
            while True:
                act(group, tensor)
                sent.set()
        except ProcessGroupBroken:
            broken.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert other.pid is not None
    try:
        assert sent.wait(60)
        # It takes nothing any more, so that the socket is full when it ends.
        os.kill(other.pid, signal.SIGSTOP)
        time.sleep(0.2)
    finally:
        other.kill()
        other.join()
    said.must_leave = True
    assert broken.wait(10), "it waits for ever for who is gone"
    thread.join(10)
    assert not thread.is_alive(), "dropping the group waits for who is gone"


def test_a_group_that_was_abandoned_is_dropped_when_its_operation_has_ended() -> None:
    class Links:
        pass

    class Work:
        ended = False

        def is_completed(self) -> bool:
            return self.ended

    links, work, held = Links(), Work(), Abandoned()
    seen = weakref.ref(links)
    held.leave(cast(Any, links), cast(Any, work))
    del links
    held.drop_ended()
    assert (len(held), seen() is not None) == (1, True)
    work.ended = True
    held.drop_ended()
    assert (len(held), seen()) == (0, None)
