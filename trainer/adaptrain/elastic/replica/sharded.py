"""A worker of several processes, each with a shard of the model (its *mates*; the first one is the *lead*).

Inside, they form torch's ordinary default group, over which FSDP gathers parameters and scatters gradients; it is made
once. Across workers, each one's process number r is in an elastic group with the processes number r of all others,
which hold the same shard: an ordinary group per epoch, as anywhere (see ``group``). Only the lead speaks to the
coordinator; what that says of epochs is relayed to the followers at once, so that the sockets of all shards' groups
are shut down together.

Why nobody waits for ever. There are two kinds of waiting: in an elastic collective for other workers, which ends when
its sockets are shut down; and in a collective of the default group for one's mates, which nothing ends but their
coming, or the worker's death. So the mates must come to the same collectives of the default group in the same order:

1. Between two such collectives a mate only computes, or takes part in elastic collectives. It always comes to the next.
2. Nothing that one mate alone has learned makes it take another way. An order is taken by the lead, and told to all;
   elastic collectives are taken ``together``: whoever's fail still comes to a vote on the default group, and they
   succeed on all mates or on none. So the mates enter and leave every epoch and every unit as one.
3. A process that dies takes its worker along: see ``followers``.

Before the vote a mate whose collective failed shuts down its own group's sockets and has the coordinator told: its
mates may wait for somebody who is lost, or for a collective that gloo forgot, until that tells all to leave.
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

from adaptrain.elastic.collectives.gather import gather_words
from adaptrain.elastic.collectives.process_group import Group, GroupBroken, Meeting, meet
from adaptrain.elastic.membership.arrival import Unneeded
from adaptrain.elastic.membership.client import Control, Epochs, Identity
from adaptrain.elastic.membership.socket_abort import GroupSockets
from adaptrain.elastic.replica.base import NOBODY, Mates
from adaptrain.elastic.replica.fsdp import ShardedState, shard
from adaptrain.elastic.replica.local_ranks import Place, Watch
from adaptrain.elastic.state.replicated import ReplicatedState, spread_words
from adaptrain.process.threads import forever
from adaptrain.rpc import framing

T = TypeVar("T")
Activity = tuple[str, float, float]
"""What a training thread does, since when (monotonic seconds), and for how many seconds at most."""

FOREVER = timedelta(days=1000)
"""Mates wait for each other as long as they live."""


class Pod(Mates):
    """Several mates and their default group."""

    def __init__(self, place: Place, leave_behind: Callable[[str], None]) -> None:
        self.rank, self.size = place.rank, place.size
        self._place = place
        self._watch = Watch(place.followers, leave_behind) if place.followers else None
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
        self, address: str, token: str, identity: Identity, sockets: GroupSockets, unneeded: Unneeded | None
    ) -> Epochs:
        """This process's side of the conversation with the coordinator."""
        if self._watch is not None:
            return _Lead(self, self._watch, address, token, identity, sockets, unneeded)
        assert self._place.line is not None
        return _Follower(self, self._place.line, identity, sockets, token)

    def form(self, control: Epochs, sockets: GroupSockets, order: framing.Frame, device: torch.device) -> Group:
        group = PodGroup(self, control, sockets, order)
        with group.together():
            group.join(self.meeting(order, device))
        return group

    def alone(self) -> Group:
        sockets = GroupSockets()
        return PodGroup(self, Epochs(NOBODY, sockets), sockets, {"epoch": 0, "rank": 0, "peers": [""]})

    @property
    def replica(self) -> type[ReplicatedState]:
        return ShardedState

    def build(self, make: Callable[[], nn.Module]) -> nn.Module:
        # One after the other: a model that is whole but once fits where a whole one of each mate wouldn't.
        model: nn.Module | None = None
        for turn in range(self.size):
            if turn == self.rank:
                model = shard(make(), self._mesh)
            self.agree(True)
        assert model is not None
        return model

    def any(self, *flags: bool) -> list[bool]:
        """For each flag whether any mate has raised it."""
        raised = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(raised, dist.ReduceOp.MAX)
        return [bool(flag) for flag in raised]

    def hear(self, said: T, savers: bool = False) -> list[T]:
        return gather_words(said, self.savers if savers else None)

    def tell(self, said: T) -> T:
        heard: T = spread_words(said, self.rank == 0, lambda tensor: dist.broadcast(tensor, 0))
        return heard


class PodGroup(Group):
    """The elastic group of one shard, and through the mates those of all shards."""

    def __init__(self, pod: Pod, control: Epochs, sockets: GroupSockets, order: framing.Frame) -> None:
        super().__init__(control, sockets, order["epoch"], order["rank"], len(order["peers"]), None)
        self._pod = pod
        self.processes = pod.size

    def join(self, meeting: Meeting) -> None:
        """Meet the same shard's processes of the other workers."""
        self._links = meet(self._control, self._sockets, meeting)

    @contextmanager
    def together(self) -> Iterator[None]:
        broken = None
        try:
            yield
        except GroupBroken as error:
            broken = error
            self._sockets.sever()
            self._control.broken(str(error))
        with self._control.doing("voting"):
            failed, self.leaving = self._pod.any(broken is not None, self.leaving)
        if failed:
            raise GroupBroken(str(broken or "another process of this worker lost touch"))

    def check(self) -> None:
        with self.together():
            self._check()

    def own(self, ids: torch.Tensor, spare: torch.Tensor) -> tuple[torch.Tensor, int]:
        return own_part(ids, self._pod.rank, self.processes, spare)

    def gather(self, *values: int) -> list[tuple[int, ...]]:
        return [tuple(row) for row in self._led(lambda: super(PodGroup, self).gather(*values))]

    def collect(self, value: float) -> list[float]:
        return self._led(lambda: super(PodGroup, self).collect(value))

    def total(self, tensor: torch.Tensor) -> None:
        dist.all_reduce(tensor)
        with self.together():
            if self._pod.rank == 0:
                self.sum(tensor)
        dist.broadcast(tensor, 0)

    def mates_sum(self, tensor: torch.Tensor) -> None:
        dist.all_reduce(tensor)

    def _led(self, ask: Callable[[], T]) -> T:
        """What the leads learn from each other."""
        learned = None
        with self.together():
            if self._pod.rank == 0:
                learned = ask()
        told: T | None = self._pod.tell(learned)
        assert told is not None
        return told


class _Lead(Control):
    """Takes orders for all mates."""

    def __init__(
        self,
        pod: Pod,
        watch: Watch,
        address: str,
        token: str,
        identity: Identity,
        sockets: GroupSockets,
        unneeded: Unneeded | None,
    ) -> None:
        self._pod = pod
        self._watch = watch
        watch.pass_on = self._pass_on
        super().__init__(address, token, identity, sockets, unneeded)

    def next(self) -> framing.Frame:
        return self._pod.tell(super().next())

    def _obey(self, frame: framing.Frame) -> bool:
        self._watch.tell(frame)
        return super()._obey(frame)

    def _pass_on(self, said: framing.Frame) -> None:
        if not self.must_leave:
            self.say(said)

    def _activity(self) -> Activity:
        return pod_activity(self._doing, self._watch.activities())


class _Follower(Epochs):
    """Does as its lead does, and says what that says, but for a group that broke: the lead may not know yet."""

    def __init__(self, pod: Pod, line: socket.socket, identity: Identity, sockets: GroupSockets, token: str) -> None:
        super().__init__(identity, sockets, token)
        self._pod = pod
        self._line = line
        for target in (self._listen, self._beat, self._sever):
            forever(f"follower{target.__name__}", target)

    def next(self) -> framing.Frame:
        with self.doing("idle"):
            return self._pod.tell({})

    def say(self, frame: framing.Frame) -> bool:
        if frame["is"] == "broken":
            with suppress(OSError):
                self._line.sendall(framing.encode(frame))
        return False

    # A line that breaks is the lead's end, and in a moment this process's too.

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
    """What a worker's beats say: who of its mates computes longest, else what its lead, or one of them, waits for."""
    said = [activity for activity in (lead, *followers) if activity[0] != "voting"]
    busy = [activity for activity in said if activity[0] not in ("waiting", "idle")]
    if busy:
        return min(busy, key=lambda activity: activity[1])
    return said[0] if said else ("computing", *lead[1:])
