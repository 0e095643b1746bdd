"""Tensors of any kind arrive as they were sent, whoever of several members sends which part of them."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from adaptrain.elastic.collectives import broadcast
from adaptrain.elastic.collectives.broadcast import broadcast_tensors
from adaptrain.elastic.collectives.process_group import ElasticProcessGroup, ProcessGroupBroken
from adaptrain.elastic.membership.socket_abort import SocketAbort
from adaptrain.elastic.state.replicated import INCOMPLETE

from tests.unit.elastic.collectives.test_group import HOST, control, meet, rendezvous
from tests.unit.elastic.state.test_heal import state, weight

PIECE, SMALL = 4096, 512
"""Bytes, for these tests."""


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcast, "PIECE", PIECE)
    monkeypatch.setattr(broadcast, "SMALL", SMALL)


@pytest.fixture
def together() -> Iterator[Any]:
    """Runs a function of a group on as many members as it is given functions."""
    with ThreadPoolExecutor(3) as pool:

        def run(*acts: Any) -> list[Any]:
            store = rendezvous()
            told = control()
            done = [
                pool.submit(lambda rank=rank, act=act: act(meet(told, rank, store.port, len(acts))))
                for rank, act in enumerate(acts)
            ]
            return [one.result(60) for one in done]

        yield run


def tensors(seed: int, channels_last: bool = False) -> list[torch.Tensor]:
    """Of every kind: large and small, of several types, empty, of no dimension, not contiguous."""
    g = torch.Generator().manual_seed(seed)
    image = torch.randn(8, 3, 16, 16, generator=g)
    made = [
        torch.randn(3 * PIECE // 4 + 5, generator=g),
        torch.tensor(float(seed)),
        torch.randn(7, 11, generator=g, dtype=torch.float64),
        torch.empty(0, 4),
        torch.randint(0, 2, (PIECE + 1,), generator=g).bool(),
        image.contiguous(memory_format=torch.channels_last) if channels_last else image,
        torch.randn(33, generator=g).bfloat16(),
        torch.randn(9, 5, generator=g).t() if channels_last else torch.randn(9, 5, generator=g).t().contiguous(),
    ]
    return made + [torch.randn(100, generator=g) for _ in range(40)]


@pytest.mark.parametrize("sources", [[0], [2], [0, 1], [1, 2]])
def test_all_kinds_of_tensors_arrive_from_any_sources(together: Any, sources: list[int]) -> None:
    held = [tensors(1 if rank in sources else 2, channels_last=rank == 1) for rank in range(3)]
    together(*(lambda group, mine=mine: broadcast_tensors(mine, group, sources) for mine in held))
    for mine in held:
        assert all(map(torch.equal, mine, tensors(1)))


def test_each_source_sends_a_part(together: Any) -> None:
    """Two that differ, as they never do: what arrives tells whose it is."""
    one, other, fresh = (torch.full((10 * PIECE,), value, dtype=torch.uint8) for value in (1, 2, 0))
    together(*(lambda group, mine=mine: broadcast_tensors([mine], group, [0, 1]) for mine in (one, other, fresh)))
    assert fresh.view(10, PIECE)[:, 0].tolist() == [1, 2] * 5
    assert fresh.view(10, PIECE).float().std(dim=1).eq(0).all()
    assert one.eq(1).all(), "a source's own tensors were written to"
    assert other.eq(2).all()


def test_one_of_several_sources_is_lost_in_the_middle(together: Any) -> None:
    """The other one has what it had, and gives all of it in the next group."""

    def large(value: float, version: int) -> Any:
        return state(value, version, width=20 * PIECE)

    stays, lost, fresh = large(1.0, 9), large(1.0, 9), large(2.0, 0)

    def send_a_part(group: ElasticProcessGroup) -> None:
        broadcast, sent = group.broadcast, iter(range(6))

        def until_it_ends(*arguments: Any) -> None:
            if next(sent, None) is None:
                group._sockets.abort()
                group._control.must_leave = True  # as the coordinator tells all of them
            broadcast(*arguments)

        group.broadcast = until_it_ends  # type: ignore[method-assign]
        with pytest.raises(ProcessGroupBroken):
            lost.heal(group)

    def heal(one: Any) -> Any:
        def break_off(group: ElasticProcessGroup) -> None:
            with pytest.raises(ProcessGroupBroken):
                one.heal(group)

        return break_off

    together(heal(stays), send_a_part, heal(fresh))
    assert (stays.counters.version, fresh.counters.version) == (9, INCOMPLETE)
    assert weight(stays) == 1.0
    assert together(stays.heal, fresh.heal) == [9, 9]
    assert all(map(torch.equal, fresh.tensors().values(), stays.tensors().values()))
    assert weight(fresh) == 1.0


def test_what_arrived_and_was_not_read_is_known() -> None:
    """Shut down, a connection receives no more: once all was read nothing can be written to anybody's memory."""
    sockets = SocketAbort()
    with socket.create_server((HOST, 0)) as server:
        sockets.forming()
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
        sockets.formed()
    with near, far:
        assert not sockets.unread()
        far.sendall(b"some")
        assert near.recv(1, socket.MSG_PEEK)
        assert sockets.unread()
        sockets.abort()
        assert sockets.unread()
        assert near.recv(100) == b"some"
        assert not sockets.unread()
        assert near.recv(100) == b""
