"""A worker of several processes, each with a shard of the model (its *local ranks*).

Inside, they form torch's ordinary default group, over which FSDP gathers parameters and scatters gradients; it is made
once. Across workers, each one's process number r is in an elastic group with the processes number r of all others,
which hold the same shard: an ordinary group per epoch, as anywhere (see ``group``). Only rank 0 speaks to the
coordinator; what that says of epochs is relayed to the followers at once, so that the sockets of all shards' groups
are shut down together.

Why nobody waits for ever. There are two kinds of waiting: in an elastic collective for other workers, which ends when
its sockets are shut down; and in a collective of the default group for one's other ranks, which nothing ends but their
coming, or the worker's death. So the ranks must come to the same collectives of the default group in the same order:

1. Between two such collectives a rank only computes, or takes part in elastic collectives. It always comes to the next.
2. Nothing that one rank alone has learned makes it take another way. An order is taken by rank 0, and told to all;
   elastic collectives are taken ``together``: whoever's fail still comes to a vote on the default group, and they
   succeed on all ranks or on none. So the ranks enter and leave every epoch and every unit as one.
3. A process that dies takes its worker along: see ``followers``.

Before the vote a rank whose collective failed shuts down its own group's sockets and has the coordinator told: its
other ranks may wait for somebody who is lost, or for a collective that gloo forgot, until that tells all to leave.
"""

import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import TCPStore
from torch.distributed.device_mesh import init_device_mesh

from adaptrain.elastic.collectives.gather import gather_json
from adaptrain.elastic.collectives.process_group import ElasticProcessGroup, ProcessGroupBroken, RendezvousPoint, meet
from adaptrain.elastic.membership.arrival import Unneeded
from adaptrain.elastic.membership.client import CoordinatorClient, GenerationState, Identity
from adaptrain.elastic.membership.socket_abort import SocketAbort
from adaptrain.elastic.replica.base import NOBODY, Replica
from adaptrain.elastic.replica.fsdp import ShardedState, shard
from adaptrain.elastic.replica.local_ranks import LocalRank, LocalRankMonitor
from adaptrain.elastic.state.replicated import ReplicatedState, broadcast_json_with
from adaptrain.process.threads import forever
from adaptrain.rpc import framing

T = TypeVar("T")
Activity = tuple[str, float, float]
"""What a training thread does, since when (monotonic seconds), and for how many seconds at most."""

FOREVER = timedelta(days=1000)
"""Ranks wait for each other as long as they live."""


class ShardedReplica(Replica):
    """Several ranks and their default group."""

    def __init__(self, place: LocalRank, write_result: Callable[[str], None]) -> None:
        self.rank, self.size = place.rank, place.size
        self._place = place
        self._watch = LocalRankMonitor(place.followers, write_result) if place.followers else None
        os.environ |= {"LOCAL_RANK": str(place.rank), "LOCAL_WORLD_SIZE": str(place.size)}
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        assert place.meeting is not None
        host, port = place.meeting.getsockname()
        if place.rank == 0:
            store = TCPStore(
                host, port, is_master=True, wait_for_workers=False, master_listen_fd=place.meeting.detach()
            )
        else:
            place.meeting.close()
            store = TCPStore(host, port, is_master=False, wait_for_workers=False)
        kind = self.device.type
        backend = "gloo" if kind == "cpu" else "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size, timeout=FOREVER)
        self.savers = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=FOREVER))
        self._mesh = init_device_mesh(kind, (place.size,))

    def control(
        self, address: str, token: str, identity: Identity, sockets: SocketAbort, unneeded: Unneeded | None
    ) -> GenerationState:
        """This process's side of the conversation with the coordinator."""
        if self._watch is not None:
            return _RankZeroClient(self, self._watch, address, token, identity, sockets, unneeded)
        assert self._place.line is not None
        return _LocalRankClient(self, self._place.line, identity, sockets, token)

    def form(
        self, control: GenerationState, sockets: SocketAbort, order: framing.Frame, device: torch.device
    ) -> ElasticProcessGroup:
        group = ShardedProcessGroup(self, control, sockets, order)
        with group.together():
            group.join(self.meeting(order, device))
        return group

    def alone(self) -> ElasticProcessGroup:
        sockets = SocketAbort()
        return ShardedProcessGroup(
            self, GenerationState(NOBODY, sockets), sockets, {"epoch": 0, "rank": 0, "peers": [""]}
        )

    @property
    def state_type(self) -> type[ReplicatedState]:
        return ShardedState

    def build(self, make: Callable[[], nn.Module]) -> nn.Module:
        # One after the other: a model that is whole but once fits where a whole one of each rank wouldn't.
        model: nn.Module | None = None
        for turn in range(self.size):
            if turn == self.rank:
                model = shard(make(), self._mesh)
            self.all_ranks(True)
        assert model is not None
        return model

    def any_rank(self, *flags: bool) -> list[bool]:
        """For each flag whether any rank has raised it."""
        raised = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(raised, dist.ReduceOp.MAX)
        return [bool(flag) for flag in raised]

    def all_gather_object(self, said: T, savers: bool = False) -> list[T]:
        return gather_json(said, self.savers if savers else None)

    def broadcast_object(self, said: T) -> T:
        heard: T = broadcast_json_with(said, self.rank == 0, lambda tensor: dist.broadcast(tensor, 0))
        return heard


class ShardedProcessGroup(ElasticProcessGroup):
    """The elastic group of one shard, and through the ranks those of all shards."""

    def __init__(
        self, replica: ShardedReplica, control: GenerationState, sockets: SocketAbort, order: framing.Frame
    ) -> None:
        super().__init__(control, sockets, order["epoch"], order["rank"], len(order["peers"]), None)
        self._replica = replica
        self.processes = replica.size

    def join(self, meeting: RendezvousPoint) -> None:
        """Meet the same shard's processes of the other workers."""
        self._links = meet(self._control, self._sockets, meeting)

    @contextmanager
    def together(self) -> Iterator[None]:
        broken = None
        try:
            yield
        except ProcessGroupBroken as error:
            broken = error
            self._sockets.abort()
            self._control.broken(str(error))
        with self._control.doing("voting"):
            failed, self.leaving = self._replica.any_rank(broken is not None, self.leaving)
        if failed:
            raise ProcessGroupBroken(str(broken or "another process of this worker lost touch"))

    def check(self) -> None:
        with self.together():
            self._check()

    def own(self, ids: torch.Tensor, spare: torch.Tensor) -> tuple[torch.Tensor, int]:
        return own_part(ids, self._replica.rank, self.processes, spare)

    def gather(self, *values: int) -> list[tuple[int, ...]]:
        return [tuple(row) for row in self._led(lambda: super(ShardedProcessGroup, self).gather(*values))]

    def collect(self, value: float) -> list[float]:
        return self._led(lambda: super(ShardedProcessGroup, self).collect(value))

    def total(self, tensor: torch.Tensor) -> None:
        dist.all_reduce(tensor)
        with self.together():
            if self._replica.rank == 0:
                self.sum(tensor)
        dist.broadcast(tensor, 0)

    def all_reduce_local(self, tensor: torch.Tensor) -> None:
        dist.all_reduce(tensor)

    def _led(self, ask: Callable[[], T]) -> T:
        """What the leads learn from each other."""
        learned = None
        with self.together():
            if self._replica.rank == 0:
                learned = ask()
        told: T | None = self._replica.broadcast_object(learned)
        assert told is not None
        return told


class _RankZeroClient(CoordinatorClient):
    """Takes orders for all ranks."""

    def __init__(
        self,
        replica: ShardedReplica,
        watch: LocalRankMonitor,
        address: str,
        token: str,
        identity: Identity,
        sockets: SocketAbort,
        unneeded: Unneeded | None,
    ) -> None:
        self._replica = replica
        self._watch = watch
        watch.pass_on = self._pass_on
        super().__init__(address, token, identity, sockets, unneeded)

    def next(self) -> framing.Frame:
        return self._replica.broadcast_object(super().next())

    def _obey(self, frame: framing.Frame) -> bool:
        self._watch.tell(frame)
        return super()._obey(frame)

    def _pass_on(self, said: framing.Frame) -> None:
        if not self.must_leave:
            self.say(said)

    def _activity(self) -> Activity:
        return pod_activity(self._doing, self._watch.activities())


class _LocalRankClient(GenerationState):
    """Follows rank 0, which speaks to the coordinator. It reports only a group that broke, to rank 0, which may not
    know of it yet."""

    def __init__(
        self, replica: ShardedReplica, line: socket.socket, identity: Identity, sockets: SocketAbort, token: str
    ) -> None:
        super().__init__(identity, sockets, token)
        self._replica = replica
        self._line = line
        for target in (self._listen, self._beat, self._sever):
            forever(f"follower{target.__name__}", target)

    def next(self) -> framing.Frame:
        with self.doing("idle"):
            return self._replica.broadcast_object({})

    def say(self, frame: framing.Frame) -> bool:
        if frame["is"] == "broken":
            with suppress(OSError):
                self._line.sendall(framing.encode(frame))
        return False

    # A line that breaks is rank 0's end, and in a moment this process's too.

    def _listen(self) -> None:
        with suppress(OSError):
            for frame in framing.frames(self._line):
                self._obey(frame)

    def _beat(self) -> None:
        with suppress(OSError):
            while True:
                doing, since, bound = self._doing
                said = {"is": "beating", "doing": doing, "age": time.monotonic() - since, "bound": bound}
                self._line.sendall(framing.encode(said))
                time.sleep(framing.BEAT_SECONDS)


def own_part(ids: torch.Tensor, rank: int, size: int, spare: torch.Tensor) -> tuple[torch.Tensor, int]:
    """One of ``size`` parts of a worker's samples, filled up to the length of the longest, and how many count."""
    own = ids[rank::size]
    fill = max(1, math.ceil(len(ids) / size)) - len(own)
    return torch.cat([own, spare.expand(fill)]), len(own)


def pod_activity(lead: Activity, followers: list[Activity]) -> Activity:
    """What a worker's beats say: who of its ranks computes longest, else what its rank 0, or one of them, waits for."""
    said = [activity for activity in (lead, *followers) if activity[0] != "voting"]
    busy = [activity for activity in said if activity[0] not in ("waiting", "idle")]
    if busy:
        return min(busy, key=lambda activity: activity[1])
    return said[0] if said else ("computing", *lead[1:])
