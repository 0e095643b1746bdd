"""An epoch's process group: an ordinary gloo group whose members meet at the first one's rendezvous.

It is never torch's default group, which a user's code or FSDP inside a pod may own.
"""

import contextlib
import ctypes
import threading
import time
from collections import deque
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

import torch
from torch.distributed import PrefixStore, ProcessGroupGloo, Work

from adaptrain.elastic.collectives.device import Collectives, connect_gpus
from adaptrain.elastic.collectives.rendezvous import MemberStore
from adaptrain.elastic.membership.client import GenerationState
from adaptrain.elastic.membership.socket_abort import SocketAbort

GPU_POLL_SECONDS = 2e-4
FORM_SECONDS = 30.0
POLL_SECONDS = 0.005
SLICE = timedelta(seconds=0.05)
"""A collective that hasn't failed so long after its sockets were shut down will not."""
REST_SECONDS = 10.0
"""After its sockets are shut down gloo reads what had arrived before, which takes a moment."""
COLLECTIVE = timedelta(hours=1)
"""A collective has no time-out of its own: who is lost is the coordinator's to decide, and severing sockets ends it."""


class ProcessGroupBroken(Exception):
    """A collective failed: the step is to be discarded, and taken again in the next group."""


@dataclass(frozen=True)
class Links:
    """A member's connections to all others."""

    store: MemberStore
    """Held, since torch's groups hold only the part of it that isn't Python's."""
    every: Collectives
    """Takes any tensor."""
    gpus: Collectives | None = None
    """Takes those on GPUs, if the members have some."""


class Abandoned:
    """Groups with an operation that will not end before its time-out: whoever drops one sooner waits for that, so each
    is held, with its sockets and threads, until its operation has ended."""

    def __init__(self) -> None:
        self._held: list[tuple[Links | None, Work]] = []

    def leave(self, links: Links | None, work: Work) -> None:
        """Hold a group, also beyond the interpreter's end."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(links))
        self._held.append((links, work))

    def drop_ended(self) -> None:
        """Let go of those whose operation has ended."""
        for one in [one for one in self._held if one[1].is_completed()]:
            self._held.remove(one)
            ctypes.pythonapi.Py_DecRef(ctypes.py_object(one[0]))

    def __len__(self) -> int:
        return len(self._held)


_ABANDONED = Abandoned()


class ElasticProcessGroup:
    """``size`` members, of which this is number ``rank``."""

    processes = 1
    """Of each member: its share of the samples is split among them (see ``pod``)."""

    def __init__(
        self,
        control: GenerationState,
        sockets: SocketAbort,
        epoch: int,
        rank: int,
        size: int,
        links: Links | None,
    ) -> None:
        self._control = control
        self._sockets = sockets
        self._links = links
        self.epoch = epoch
        self.rank = rank
        self.size = size
        self.leaving = False
        """Whether all members leave together now: known after each ``sum``."""
        self.waited = 0.0
        """Seconds spent in collectives since it was last set to 0."""
        self.abandoned = False
        """Whether a collective was left behind that may yet write into its tensor."""
        self._under_way: deque[tuple[Work, bool]] = deque()
        """Each with whether it is NCCL's."""
        self._failure: RuntimeError | None = None

    def _begin(self, tensor: torch.Tensor, root: int | None = None) -> None:
        """Begin to sum over all members, or to broadcast from one."""
        if self._links is None or self._failure is not None:
            return
        gpus = self._links.gpus if tensor.is_cuda else None
        backend = gpus or self._links.every
        try:
            work = backend.allreduce(tensor) if root is None else backend.broadcast(tensor, root)
            self._under_way.append((work, gpus is not None))
        except RuntimeError as error:
            self._failure = error

    def _wait(self, tensor: torch.Tensor, root: int | None = None, ahead: int = 0) -> None:
        """Begin a collective, and wait for it and for all before it, but for the last ``ahead``; nothing to do if this
        is the only member."""
        began = time.perf_counter()
        try:
            self._check()
            self._begin(tensor, root)
            while len(self._under_way) > ahead:
                with self._control.doing("waiting"):  # of each anew: many in a row are no hang
                    self._finish(*self._under_way[0])
                self._under_way.popleft()
            if self._failure is not None:
                raise self._failure
        except (RuntimeError, ProcessGroupBroken) as error:
            self._give_up()
            raise ProcessGroupBroken(str(error).splitlines()[0]) from error
        self.waited += time.perf_counter() - began

    def _finish(self, work: Work, on_gpu: bool) -> None:
        while not work.is_completed():
            if on_gpu:
                time.sleep(GPU_POLL_SECONDS)  # when it waits in vain, NCCL's work gives up the whole group
            else:
                with contextlib.suppress(RuntimeError):  # the work's own comes again below, else the slice is over
                    work.wait(SLICE)
            if not work.is_completed():
                self._check()
        work.wait(COLLECTIVE)  # with a time-out: else NCCL's doesn't tell that it failed

    def _give_up(self) -> None:
        """Let everything that is under way fail, or abandon it.

        A gloo pair that fails doesn't tell an operation whose data was still on its way (``Pair::signalException`` in
        gloo/transport/tcp/pair.cc passes over ``tx_``'s unbound buffers): that one waits until its time-out, and so
        would whoever drops the group. Left behind is a thread, which no socket reaches any more.
        """
        if not self._under_way:
            return
        self._sockets.abort()
        if self._links is not None and self._links.gpus is not None:
            self._links.gpus.abort()
        for work, _ in self._under_way:
            with contextlib.suppress(RuntimeError):
                work.wait(SLICE)
            if not work.is_completed():
                _ABANDONED.leave(self._links, work)
                self.abandoned = True
                break
        self._under_way.clear()

    def check(self) -> None:
        """
        Raises:
            ProcessGroupBroken: somebody was lost, and the group is to be left at once.
        """
        self._check()

    def _check(self) -> None:
        if self._control.must_leave:
            raise ProcessGroupBroken("told to leave")

    def begin_sum(self, part: torch.Tensor) -> None:
        """Begin to sum over all members, in place, while this one goes on computing; the next ``sum`` waits for it.

        All members begin the same sums in the same order. Raises nothing, for the sake of autograd's hooks.
        """
        self._begin(part)

    def sum(self, flat: torch.Tensor) -> None:
        """Sum over all members, in place, and wait for all sums that were begun before.

        The last element belongs to the group: it counts who wants to leave, so that all leave after the same step.
        """
        flat[-1] = float(self._control.should_leave)
        self._wait(flat)
        self.leaving = bool(flat[-1] > 0)

    def exchange(self, tensor: torch.Tensor) -> None:
        """Sum over all members, in place, in the middle of a step: nobody leaves after it."""
        self._wait(tensor)

    def together(self) -> AbstractContextManager[None]:
        """Around sums and broadcasts: they succeed on all processes of this worker, or fail on all."""
        return nullcontext()

    def own(self, ids: torch.Tensor, spare: torch.Tensor) -> tuple[torch.Tensor, int]:
        """What this process computes of its worker's samples, and how many of the first ones count. All processes of
        a worker compute as many, since they need each other for it; ``spare`` [1] fills up."""
        return ids, len(ids)

    def total(self, tensor: torch.Tensor) -> None:
        """Sum over all processes of all members, in place; the last element is as in ``sum``."""
        self.sum(tensor)

    def all_reduce_local(self, tensor: torch.Tensor) -> None:
        """Sum over the processes of this worker, in place."""

    def gather(self, *values: int) -> list[tuple[int, ...]]:
        """Each member's values, by rank."""
        every = torch.zeros(self.size, len(values), dtype=torch.int64)
        every[self.rank] = torch.tensor(values)
        self._wait(every)
        return [tuple(row) for row in every.tolist()]

    def collect(self, value: float) -> list[float]:
        """Each member's value, by rank: the same numbers on every member."""
        every = torch.zeros(self.size, dtype=torch.float64)
        every[self.rank] = value
        self._wait(every)
        return every.tolist()

    def note(self, message: str) -> None:
        """Have something told to people."""
        self._control.note(message)

    def broadcast(self, tensor: torch.Tensor, root: int, ahead: int = 0) -> None:
        """Overwrite with what ``root`` has; the last ``ahead`` that were begun may still be under way then."""
        self._wait(tensor, root, ahead)

    def rest(self) -> None:
        """Of a group that is broken: make sure that nothing writes any more into tensors that were broadcast.

        Raises:
            RuntimeError: that can't be known of them.
        """
        until = time.monotonic() + REST_SECONDS
        while self.abandoned and self._sockets.unread():
            if time.monotonic() > until:
                raise RuntimeError(f"gloo did not read what had arrived within {REST_SECONDS:.0f} s")
            time.sleep(POLL_SECONDS)


@dataclass(frozen=True)
class RendezvousPoint:
    """Where members meet, and as which of them."""

    name: str
    rank: int
    size: int
    host: str
    port: int
    """Of the first member's rendezvous."""
    device: torch.device
    """Where the members' tensors are."""


def form(control: GenerationState, sockets: SocketAbort, epoch: int, meeting: RendezvousPoint) -> ElasticProcessGroup:
    """Meet the epoch's other members.

    Raises:
        ProcessGroupBroken: somebody was lost meanwhile.
    """
    return ElasticProcessGroup(control, sockets, epoch, meeting.rank, meeting.size, meet(control, sockets, meeting))


def meet(control: GenerationState, sockets: SocketAbort, meeting: RendezvousPoint) -> Links | None:
    """Connect to all others who come; None if there are none.

    Raises:
        ProcessGroupBroken: somebody was lost meanwhile.
    """
    if meeting.size == 1:
        return None
    _ABANDONED.drop_ended()
    made: Future[Links] = Future()

    def connect() -> None:
        try:
            made.set_result(_connect(control.identity.host, control.token, meeting))
        except BaseException as error:
            made.set_exception(error)

    sockets.forming()
    try:
        # In a thread of its own: gloo waits for whoever is to connect to this member, with no socket yet that could be
        # shut down. Whoever is told to leave meanwhile leaves that thread to its time-out.
        threading.Thread(target=connect, daemon=True, name=f"form-{meeting.name}").start()
        while not wait([made], POLL_SECONDS).done:
            if control.must_leave:
                raise ProcessGroupBroken("told to leave")
        return made.result()
    except RuntimeError as error:
        raise ProcessGroupBroken(f"could not be formed: {str(error).splitlines()[0]}") from error
    finally:
        sockets.formed()


def _connect(own_host: str, token: str, meeting: RendezvousPoint) -> Links:
    # A connection of its own for each attempt: severing its socket ends the attempt.
    store = MemberStore(meeting.host, meeting.port, token)
    options = ProcessGroupGloo._Options()
    options._devices = [ProcessGroupGloo.create_device(hostname=own_host)]
    options._timeout = timedelta(seconds=FORM_SECONDS)
    every = ProcessGroupGloo(PrefixStore(meeting.name, store), meeting.rank, meeting.size, options)
    every._set_default_timeout(COLLECTIVE)
    gpus = connect_gpus(store, f"{meeting.name}/gpus", meeting.rank, meeting.size, meeting.device)
    return Links(store, cast(Collectives, every), gpus)
