"""The processes of one worker: the first one, the *lead*, forks the others, its *followers*, before anything has begun.

They live and die together: whoever loses rank 0 is killed by the kernel, and a lead that loses a follower ends as
that one did. The group that they form among themselves is never formed anew, so nobody waits in it for the dead.
"""

import logging
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adaptrain.process.lifetime import die_with_parent
from adaptrain.process.result import failed_result, shortened
from adaptrain.rpc import framing

log = logging.getLogger(__name__)

PEER_EXIT_SECONDS = 1.0
"""Rank 0 hears of another rank's death within this time."""


@dataclass(frozen=True)
class LocalProcess:
    """What rank 0 knows of one of its followers."""

    rank: int
    pid: int
    line: socket.socket
    """Orders go out, beats come in."""
    words: Path
    """Where it leaves its result if it fails."""


@dataclass(frozen=True)
class LocalRank:
    """One process's place in its worker."""

    rank: int
    """0: rank 0."""
    size: int
    meeting: socket.socket | None = None
    """Where rank 0's store listens, if there is anybody to meet."""
    followers: tuple[LocalProcess, ...] = ()
    """Of rank 0."""
    line: socket.socket | None = None
    """A follower's, to its rank 0."""
    words: Path | None = None

    def wait_for_peer_exit(self) -> None:
        """An error happened: if it is another rank's death that caused it, end as that one did."""
        if self.size > 1:
            time.sleep(PEER_EXIT_SECONDS)


ALONE = LocalRank(0, 1)


def fork(size: int) -> LocalRank:
    """Make one process ``size`` of them; returns in each. Call before there is any other thread."""
    if size == 1:
        return ALONE
    lead = os.getpid()
    meeting = socket.create_server(("127.0.0.1", 0))
    followers: list[LocalProcess] = []
    for rank in range(1, size):
        ours, theirs = socket.socketpair()
        words = Path(f"/proc/self/fd/{os.memfd_create(f'words-{rank}')}")
        if (pid := os.fork()) == 0:
            die_with_parent(lead)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever interrupts a worker means its rank 0
            for line in (ours, *(other.line for other in followers)):
                line.close()
            return LocalRank(rank, size, meeting, line=theirs, words=words)
        theirs.close()
        followers.append(LocalProcess(rank, pid, ours, words))
    return LocalRank(0, size, meeting, tuple(followers))


class LocalRankMonitor:
    """Rank 0's look at its followers, from a thread: what they do, and whether they live."""

    def __init__(self, followers: tuple[LocalProcess, ...], write_result: Callable[[str], None]) -> None:
        self._followers = followers
        self._leave_behind = write_result
        self._heard: dict[int, tuple[float, framing.Frame]] = {}
        self.pass_on: Callable[[framing.Frame], object] = lambda frame: None
        """Called with what a follower has to say to the coordinator."""
        threading.Thread(target=self._watch, daemon=True, name="followers").start()

    def tell(self, frame: framing.Frame) -> None:
        """Relay an order. A follower that can't hear it any more is about to be missed."""
        for follower in self._followers:
            try:
                follower.line.sendall(framing.encode(frame))
            except OSError:
                continue

    def activities(self) -> list[tuple[str, float, float]]:
        """What each follower said last: what its training thread does, since when, and for how long at most."""
        return [(said["doing"], at - said["age"], said["bound"]) for at, said in list(self._heard.values())]

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for follower in self._followers:
                selector.register(os.pidfd_open(follower.pid), selectors.EVENT_READ, follower)
            for follower in self._followers:
                listen = threading.Thread(target=self._listen, args=(follower,), daemon=True, name="follower")
                listen.start()
            while selector.get_map():
                for key, _ in sorted(selector.select(), key=lambda found: found[0].data.rank):
                    _, status = os.waitpid(key.data.pid, 0)
                    if (code := os.waitstatus_to_exitcode(status)) != 0:
                        self._follow(key.data, code)
                    selector.unregister(key.fd)

    def _listen(self, follower: LocalProcess) -> None:
        try:
            for frame in framing.frames(follower.line):
                # From its first beat on: nobody knows how long a model takes to build.
                follower.line.settimeout(framing.SILENCE_SECONDS)
                if frame["is"] == "beating":
                    self._heard[follower.rank] = time.monotonic(), frame
                else:
                    self.pass_on(frame)
        except TimeoutError:
            log.error("process %d of this worker was not heard for %.0f s", follower.rank, framing.SILENCE_SECONDS)
            os.kill(follower.pid, signal.SIGKILL)
        except OSError:
            pass  # it is gone, which its parent learns at once

    def _follow(self, follower: LocalProcess, code: int) -> None:
        """End as a follower did."""
        if code < 0:
            words = f"process {follower.rank} of this worker was killed by {signal.Signals(-code).name}"
            log.error("%s", words)
            self._leave_behind(shortened(failed_result(words)).decode())
            os.kill(os.getpid(), -code)
            os._exit(128 - code)  # the first process of a container can't be killed from inside
        if words := follower.words.read_text():
            self._leave_behind(words)
        os._exit(code)
