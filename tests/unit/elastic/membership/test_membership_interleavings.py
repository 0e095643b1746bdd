"""The membership's interleavings: the real state machine, driven by simulated workers in random orders."""

import random
from collections import deque
from dataclasses import dataclass, field

import pytest
from adaptrain.elastic.membership.commands import CommandQueue
from adaptrain.elastic.membership.state_machine import Action, Activity, Drop, Membership, coordinator_of
from adaptrain.rpc.framing import Frame


@dataclass
class Worker:
    """What a real worker does with what it is told, without its threads."""

    id: str
    inbox: deque[Frame] = field(default_factory=deque)
    """What is on its way to it."""
    orders: CommandQueue = field(default_factory=CommandQueue)
    """What has arrived."""
    outbox: deque[tuple[str, int]] = field(default_factory=deque)
    connected: bool = True
    alive: bool = True
    hung: bool = False
    preparing: bool = False
    stuck: bool = False
    """Whether it never ends its preparations."""
    leaving: bool = False
    gone: bool = False
    group: int = 0
    formed: int = 0
    """The epoch under which the group was formed; ``group`` differs from it once a new coordinator took it over."""
    peers: frozenset[str] = frozenset()
    planned: int = 0
    wanted: int = 0
    readied: int = 0

    @property
    def must_leave(self) -> bool:
        return self.wanted > self.group

    @property
    def should_leave(self) -> bool:
        return max(self.wanted, self.planned) > self.group


class World:
    """A coordinator and its workers; ``random`` decides what happens next."""

    def __init__(self, seed: int, minimum: int) -> None:
        self.random = random.Random(seed)
        self.minimum = minimum
        self.now = 1000.0
        self.number = 1
        self.membership = Membership(1, minimum)
        self.workers: dict[str, Worker] = {}

    def living(self) -> list[Worker]:
        return [w for w in self.workers.values() if w.alive and not w.gone]

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Drop):
                self.workers[action.id].connected = False
                continue
            worker = self.workers[action.to]
            if action.frame["do"] == "form":
                # The one invariant: nobody is put into a group without having left every earlier one.
                assert worker.readied == action.frame["epoch"], "formed with a member that was not ready"
            if worker.connected:
                worker.inbox.append(action.frame)

    def connect(self, worker: Worker) -> None:
        worker.connected = True
        worker.inbox.clear()
        worker.outbox.clear()
        m = self.membership
        self.do(
            m.hello(self.now, worker.id, worker.id, "h", 1, worker.group, worker.peers, 0, preparing=worker.preparing)
        )
        if worker.leaving:
            self.do(m.leaving(self.now, worker.id))

    def beat(self, worker: Worker) -> None:
        self.membership.beat(self.now, worker.id, Activity("idle", self.now), 0, 0)
        if not worker.preparing:
            self.do(self.membership.prepared(self.now, worker.id))

    def join(self) -> None:
        worker = Worker(f"w{len(self.workers)}")
        worker.preparing = self.random.random() < 0.5
        worker.stuck = worker.preparing and self.random.random() < 0.1
        self.workers[worker.id] = worker
        self.connect(worker)

    def hear(self, worker: Worker) -> None:
        """What is on its way to a worker arrives."""
        frame = worker.inbox.popleft()
        match frame["do"]:
            case "adopt":
                if worker.group and worker.group == frame["group"]:
                    worker.group = frame["epoch"]
                else:
                    worker.outbox.append(("broken", frame["epoch"]))
                return
            case "plan" | "leave" | "form" if worker.preparing:
                raise AssertionError("somebody may wait for a worker that is not prepared")
            case "plan":
                worker.planned = frame["epoch"]
            case "leave":
                worker.wanted = frame["epoch"]
                if worker.group:  # its sockets are shut down
                    self.leave_group(worker)
        worker.orders.put(frame)

    def follow(self, worker: Worker) -> None:
        """The worker, in no group, does what it was told."""
        if (frame := worker.orders.take()) is None:
            return
        match frame["do"]:
            case "plan" | "leave":
                worker.readied = frame["epoch"]
                worker.outbox.append(("ready", frame["epoch"]))
            case "form":
                worker.group = worker.formed = frame["epoch"]
                worker.peers = frozenset(frame["peers"])
                if worker.must_leave:
                    self.leave_group(worker)
            case "go" | "finish":
                worker.gone = True
                worker.connected = False

    def say(self, worker: Worker) -> None:
        """The coordinator takes the next thing that the worker said."""
        what, epoch = worker.outbox.popleft()
        if what == "ready":
            self.do(self.membership.ready(self.now, worker.id, epoch))
        elif what == "broken":
            self.do(self.membership.broken(self.now, worker.id, epoch))

    def step(self, worker: Worker) -> None:
        """The worker's group takes a step: all together, or it fails for whoever is left."""
        peers = [self.workers[p] for p in worker.peers]
        if any(p.formed < worker.formed for p in peers):
            return  # somebody has yet to come, or never will: that is for the coordinator to tell
        if not all(p.alive and p.formed == worker.formed and p.group for p in peers):
            if not worker.must_leave:
                worker.outbox.append(("broken", worker.group))
            self.leave_group(worker)
        elif any(p.should_leave for p in peers):
            for p in peers:
                self.leave_group(p)

    def end_preparations(self, worker: Worker) -> None:
        worker.preparing = False
        if worker.connected:
            self.beat(worker)

    def leave_group(self, worker: Worker) -> None:
        worker.group = 0
        worker.peers = frozenset()

    def notice(self) -> None:
        """The coordinator notices who is dead."""
        for w in self.workers.values():
            if not w.alive and w.connected:
                w.connected = False
                self.do(self.membership.gone(self.now, w.id))
            elif w.alive and not w.gone and not w.connected:
                self.connect(w)

    def replace_coordinator(self) -> None:
        self.number += 1
        self.membership = Membership(self.number, self.minimum)
        for w in self.workers.values():
            w.connected = False
            w.inbox.clear()
            w.outbox.clear()

    def chance(self) -> None:
        """One random event."""
        self.now += self.random.random() * 0.2
        for worker in self.workers.values():
            if worker.connected:
                self.beat(worker)
        kind = self.random.random()
        living = self.living()
        if not living or kind < 0.04:
            self.join()
        elif kind < 0.07:
            self.random.choice(living).alive = False
        elif kind < 0.09:
            worker = self.random.choice(living)
            worker.leaving = True
            if worker.connected:
                self.do(self.membership.leaving(self.now, worker.id))
            if worker.preparing:  # it ends at once
                worker.alive = False
        elif kind < 0.10:
            self.replace_coordinator()
        elif kind < 0.11:  # a connection breaks without its worker
            worker = self.random.choice(living)
            if worker.connected:
                worker.connected = False
                worker.inbox.clear()
                worker.outbox.clear()
                self.do(self.membership.gone(self.now, worker.id))
        elif kind < 0.2:
            self.notice()
        elif kind < 0.24:
            self.do(self.membership.tick(self.now))
        else:
            self.flow(self.random.choice(living))

    def flow(self, worker: Worker) -> None:
        choices = []
        if worker.preparing and not worker.stuck:
            choices.append(self.end_preparations)
        if worker.inbox:
            choices.append(self.hear)
        if not worker.group and not worker.preparing:
            choices.append(self.follow)
        if worker.outbox and worker.connected:
            choices.append(self.say)
        if worker.group:
            choices.append(self.step)
        if choices:
            self.random.choice(choices)(worker)

    def calm(self) -> None:
        """No more faults: everything that was said is heard, and time passes."""
        for _ in range(400):
            self.now += 0.05
            self.notice()
            for worker in self.living():
                self.beat(worker)
                for _ in range(5):
                    self.flow(worker)
            self.do(self.membership.tick(self.now))


@pytest.mark.parametrize("minimum", [1, 2, 3])
@pytest.mark.parametrize("block", range(10))
def test_every_interleaving_ends_with_all_the_living_in_one_group(minimum: int, block: int) -> None:
    for seed in range(block * 10, block * 10 + 10):
        world = World(seed, minimum)
        for _ in range(world.random.randrange(10, 400)):
            world.chance()
        world.calm()
        staying = [w for w in world.living() if not w.leaving and not w.preparing]
        groups = {w.group for w in staying}
        if len(staying) >= minimum:
            assert len(groups) <= 1, f"seed {seed}: more than one group"
            assert 0 not in groups, f"seed {seed}: somebody was left behind: {staying}"
            assert all(coordinator_of(g) == world.number for g in groups), f"seed {seed}: an old coordinator is obeyed"
            assert world.membership.state == ("running" if staying else "waiting")
        else:
            assert groups <= {0}, f"seed {seed}: trains below the minimum"
        assert all(w.gone for w in world.workers.values() if w.alive and w.leaving), f"seed {seed}: could not leave"
