"""A worker's connection to its coordinator.

Training goes on while it is broken; it is made again for ever. One thread listens, one sends beats (from a thread of
its own, since whoever waits in a collective for a hung peer is not hung itself), one shuts down the sockets of a group
that must be left at once. The training thread only reads flags, and asks for its next instruction between groups.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NoReturn

from adaptrain.elastic.membership.commands import LAST, CommandQueue
from adaptrain.elastic.membership.socket_abort import INTERVAL, SocketAbort, inode
from adaptrain.elastic.membership.state_machine import coordinator_of
from adaptrain.process.threads import forever
from adaptrain.rpc import framing, handshake
from adaptrain.rpc.messages import FROM_COORDINATOR
from adaptrain.rpc.ports import split

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.2
CONNECT_SECONDS = 1.0
NOTE_LENGTH = 300
"""Characters that are told of what happened."""
ALONE_SECONDS = 30.0
"""Between two lines of the log that say that there is no coordinator."""


@dataclass(frozen=True)
class Identity:
    """Who a worker is: ``id`` is never used twice (a pod's UID), ``host`` is where others reach it."""

    id: str
    name: str
    host: str
    port: int
    """Of this worker's own rendezvous."""


class GenerationState:
    """Which epoch this process is in and which one it is to go to, as it was told; shuts down a group's sockets."""

    def __init__(self, identity: Identity, sockets: SocketAbort, token: str = "") -> None:
        self.identity = identity
        self.token = token
        """What members of a group prove to each other that they know."""
        self._sockets = sockets
        self._lock = threading.RLock()
        self._group = 0
        self._peers: list[str] = []
        self._epoch = 0
        self._wanted = 0
        self._planned = 0
        self._doing: tuple[str, float, float] = ("idle", time.monotonic(), 0.0)
        self._must_sever = threading.Event()
        self.version = 0
        self.step = 0
        self.trained = False
        """Whether this worker has applied a step itself, or its script has run for a while."""
        self.workers = 0
        """How many workers there are, members or not, this one included; 0: that is not known."""

    @contextmanager
    def group(self, epoch: int, peers: list[str]) -> Iterator[None]:
        """The training thread is in the group of an epoch. An OSError or ProcessGroupBroken inside is reported by
        ``broken``."""
        with self._lock:
            self._group, self._peers, self._epoch = epoch, peers, epoch
        if self.must_leave:
            self._must_sever.set()
        try:
            yield
        finally:
            with self._lock:
                self._group, self._peers = 0, []

    @property
    def must_leave(self) -> bool:
        """Somebody is lost: the group is to be left at once."""
        return self._wanted > self._epoch

    @property
    def should_leave(self) -> bool:
        """A planned change: the group is to be left together, at the end of a step."""
        return max(self._planned, self._wanted) > self._epoch

    @property
    def epoch(self) -> int:
        return self._epoch

    @contextmanager
    def doing(self, what: str, bound: float = 0.0) -> Iterator[None]:
        """Tell the beats what the training thread does, and for a long section how many seconds it takes at most."""
        before, self._doing = self._doing, (what, time.monotonic(), bound)
        try:
            yield
        finally:
            self._doing = (before[0], time.monotonic(), before[2])

    def next(self) -> framing.Frame:
        """The next order; waits for one."""
        raise NotImplementedError

    def say(self, frame: framing.Frame) -> bool:
        """Send a frame to the coordinator; whether it was sent."""
        raise NotImplementedError

    def leave(self) -> None:
        """Ask to leave at the step's end."""
        raise NotImplementedError

    def prepared(self) -> None:
        """This worker said hello while it was preparing; from now on others may wait for it."""

    @property
    def may_commit(self) -> bool:
        """Whether this group is the one that the newest coordinator obeys: only it may leave anything behind."""
        return False

    @property
    def connected(self) -> bool:
        return False

    def ready(self, epoch: int, port: int | None = None) -> None:
        """This worker has left every group and waits for the epoch's; it would host its store at this port."""
        self.say({"is": "ready", "epoch": epoch} | ({} if port is None else {"port": port}))

    def broken(self, why: str) -> None:
        """The group failed. Of no interest to a coordinator that has told to leave it already."""
        with self._lock:
            if not self.must_leave:
                self.say({"is": "broken", "epoch": self._epoch, "why": why[:NOTE_LENGTH]})

    def note(self, message: str) -> None:
        """Have something told to people, beside the changes of membership."""
        self.say({"is": "note", "message": message[:NOTE_LENGTH]})

    def _obey(self, frame: framing.Frame) -> bool:
        """Note what an order says of epochs. Returns whether that was possible."""
        match frame["do"]:
            case "adopt":
                with self._lock:
                    if not self._group or self._epoch != frame["group"]:
                        return False
                    self._epoch = frame["epoch"]
            case "plan":
                self._planned = frame["epoch"]
            case "leave":
                self._wanted = frame["epoch"]
                if self._group:
                    self._must_sever.set()
        return True

    def _sever(self) -> None:
        while True:
            self._must_sever.wait()
            self._must_sever.clear()
            while self._group and self.must_leave:
                with suppress(OSError):  # no descriptor is left to look at the others with: in a moment there is one
                    self._sockets.abort()
                time.sleep(INTERVAL)


class CoordinatorClient(GenerationState):
    """The control connection and what came over it.

    Args:
        unneeded: this worker is preparing until ``prepared``. Should it be asked to end before, this is called, in any
            thread, with the order, and ends the process.
    """

    def __init__(
        self,
        address: str,
        token: str,
        identity: Identity,
        sockets: SocketAbort,
        unneeded: Callable[[framing.Frame], NoReturn] | None = None,
    ) -> None:
        super().__init__(identity, sockets, token)
        self._unneeded = unneeded
        self._may_greet = threading.Event()
        self._may_greet.set()
        self._address = split(address)
        sockets.exempt(self._own_sockets)
        self._sock: socket.socket | None = None
        self._orders = CommandQueue()
        self._arrived = threading.Condition()
        self._number = 0
        self._leaving = False
        self._alone_since: float | None = None
        os.register_at_fork(after_in_child=self._forget)
        for target in (self._listen, self._beat, self._sever):
            forever(f"control{target.__name__}", target)

    # What the training thread asks and tells

    def next(self) -> framing.Frame:
        with self.doing("idle"), self._arrived:
            while (frame := self._orders.take()) is None:
                self._arrived.wait()
        return frame

    def arrived(self, seconds: float) -> bool:
        """Wait so long for an order; whether there is one."""
        with self._arrived:
            return self._arrived.wait_for(self._orders.waiting, seconds)

    def ended(self, failed: bool) -> None:
        """The script that this worker launched for its group has ended. To be said until an order comes."""
        with self._lock:
            self.say({"is": "ended", "epoch": self._epoch, "failed": failed})

    @property
    def may_commit(self) -> bool:
        return self._sock is not None and self._group > 0 and coordinator_of(self._epoch) == self._number

    def leave(self) -> None:
        with self._lock:
            self._leaving = True
            self.say({"is": "leaving"})
            if self._unneeded is not None:
                self._unneeded({"do": "go", "save": False})

    def prepared(self) -> None:
        with self._lock:
            self._unneeded = None
            self._say_beat()
        self._may_greet.set()

    @property
    def connected(self) -> bool:
        return self._sock is not None

    def say(self, frame: framing.Frame) -> bool:
        # What the coordinator must know is told again after a reconnection.
        with self._lock:
            if self._sock is None:
                return False
            try:
                self._sock.sendall(framing.encode(frame))
            except OSError:
                self._hang_up()
                return False
            return True

    # Threads

    def _own_sockets(self) -> set[str]:
        try:
            return {inode(self._sock)} if self._sock is not None else set()
        except OSError:
            return set()

    def _hang_up(self) -> None:
        with self._lock:
            if self._sock is not None:
                self._sock.close()
                self._sock = None

    def _forget(self) -> None:
        """A child that a user's code forks, while data is read, must not hold this worker's connection open: its end is
        seen by that."""
        if (sock := self._sock) is not None:
            sock.close()

    def _listen(self) -> None:
        logged = -ALONE_SECONDS
        while True:
            self._may_greet.wait()
            try:
                sock = socket.create_connection(self._address, timeout=CONNECT_SECONDS)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._converse(sock)
            except (OSError, framing.BadFrame) as error:
                now = time.monotonic()
                if self._alone_since is None:
                    self._alone_since, logged = now, now - ALONE_SECONDS
                if now - logged >= ALONE_SECONDS:
                    logged, alone = now, now - self._alone_since
                    log.warning("no coordinator for %.0f s (%s); training goes on, and it is tried again", alone, error)
            finally:
                self._hang_up()
            time.sleep(RETRY_SECONDS)

    def _converse(self, sock: socket.socket) -> None:
        said: framing.Frame = {}

        def say() -> framing.Frame:
            i = self.identity
            said.update({"id": i.id, "name": i.name, "host": i.host, "port": i.port})
            with self._lock:
                said.update({"group": self._group and self._epoch, "peers": self._peers, "version": self.version})
                said.update({"trained": self.trained, "preparing": self._unneeded is not None})
            return said

        try:
            answer, pending = handshake.introduce(sock, self.token, say)
            sock.settimeout(framing.SILENCE_SECONDS)
            self._welcome(sock, FROM_COORDINATOR.check(answer), said)
            for frame in framing.frames(sock, pending):
                self._hear(FROM_COORDINATOR.check(frame))
        finally:
            sock.close()

    def _welcome(self, sock: socket.socket, answer: framing.Frame, said: framing.Frame) -> None:
        match answer["do"]:
            case "refuse":
                self._put(answer)
            case "welcome" if answer["number"] < self._number:
                raise framing.BadFrame(f"coordinator {answer['number']} is older than {self._number}")
            case "welcome":
                with self._lock:
                    if (self._group and self._epoch) != said["group"]:
                        raise ConnectionError("the group was entered or left since hello was said")
                    if said["preparing"] and not answer.get("preparing") and self._unneeded is not None:
                        # It would let all others wait for this worker.
                        self._may_greet.clear()
                        raise ConnectionError("an older release, which is greeted once this worker is prepared")
                    self._number, self._sock = answer["number"], sock
                self._alone_since = None
                if self._leaving:
                    self.say({"is": "leaving"})
            case other:
                raise framing.BadFrame(f"{other} is no answer to a hello")

    def _hear(self, frame: framing.Frame) -> None:
        match frame["do"]:
            case "beat":
                self.workers = frame.get("workers") or 0
                return
            case "adopt":
                if not self._obey(frame):  # the group broke while nobody listened
                    self.say({"is": "broken", "epoch": frame["epoch"], "why": "left before"})
                return
            case "form" if self.identity.id not in frame["peers"][frame["rank"] : frame["rank"] + 1]:
                raise framing.BadFrame("form: this worker is not of that rank")
            case "welcome" | "refuse":
                raise framing.BadFrame(f"a second {frame['do']}")
        self._obey(frame)
        self._put(frame)

    def _put(self, order: framing.Frame) -> None:
        with self._lock:
            if self._unneeded is not None and order["do"] in LAST:
                self._unneeded(order)
        with self._arrived:
            self._orders.put(order)
            self._arrived.notify()

    def _beat(self) -> None:
        while True:
            time.sleep(framing.BEAT_SECONDS)
            self._say_beat()

    def _say_beat(self) -> None:
        with self._lock:
            doing, since, bound = self._activity()
            age = time.monotonic() - since
            frame = {
                "is": "beating",
                "doing": doing,
                "age": age,
                "bound": bound,
                "preparing": self._unneeded is not None,
            }
            self.say(frame | {"version": self.version, "step": self.step, "trained": self.trained})

    def _activity(self) -> tuple[str, float, float]:
        """What the training thread does, since when (monotonic seconds), and for how many seconds at most."""
        return self._doing
