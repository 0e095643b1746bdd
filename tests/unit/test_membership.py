"""The membership's interleavings: the real state machine, driven by simulated workers in random orders."""

import random
from collections import deque
from dataclasses import dataclass, field

import pytest
from adaptrain.elastic.coordinator import Coordinator
from adaptrain.elastic.membership import (
    AWAY_SECONDS,
    FLAPS,
    MISSED_SECONDS,
    SETTLE_SECONDS,
    Action,
    Activity,
    Doing,
    Drop,
    Membership,
    Send,
    coordinator_of,
)
from adaptrain.elastic.orders import Orders
from adaptrain.elastic.wire import SILENCE_SECONDS, Frame


@dataclass
class Worker:
    """What a real worker does with what it is told, without its threads."""

    id: str
    inbox: deque[Frame] = field(default_factory=deque)
    """What is on its way to it."""
    orders: Orders = field(default_factory=Orders)
    """What has arrived."""
    outbox: deque[tuple[str, int]] = field(default_factory=deque)
    connected: bool = True
    alive: bool = True
    hung: bool = False
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
        self.do(m.hello(self.now, worker.id, worker.id, "h", 1, worker.group, worker.peers, 0))
        if worker.leaving:
            self.do(m.leaving(self.now, worker.id))

    def join(self) -> None:
        worker = Worker(f"w{len(self.workers)}")
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
                self.membership.beat(self.now, worker.id, Activity("idle", self.now), 0, 0)
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
        if worker.inbox:
            choices.append(self.hear)
        if not worker.group:
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
                self.membership.beat(self.now, worker.id, Activity("idle", self.now), 0, 0)
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
        staying = [w for w in world.living() if not w.leaving]
        groups = {w.group for w in staying}
        if len(staying) >= minimum:
            assert len(groups) <= 1, f"seed {seed}: more than one group"
            assert 0 not in groups, f"seed {seed}: somebody was left behind: {staying}"
            assert all(coordinator_of(g) == world.number for g in groups), f"seed {seed}: an old coordinator is obeyed"
            assert world.membership.state == ("running" if staying else "waiting")
        else:
            assert groups <= {0}, f"seed {seed}: trains below the minimum"
        assert all(w.gone for w in world.workers.values() if w.alive and w.leaving), f"seed {seed}: could not leave"


def arrive(m: Membership, *ids: str, now: float = 0.0) -> list[Action]:
    actions: list[Action] = []
    for id in ids:
        actions += m.hello(now, id, id, "h", 1)
    return actions


def ready(m: Membership, *ids: str) -> list[Action]:
    actions: list[Action] = []
    for id in ids:
        actions += m.ready(0.0, id, m.epoch)
    return actions


def running(*ids: str, minimum: int = 1) -> Membership:
    m = Membership(1, minimum)
    arrive(m, *ids)
    ready(m, *ids)
    assert m.state == "running"
    return m


def frames(actions: list[Action]) -> dict[str, str]:
    return {a.to: a.frame["do"] for a in actions if isinstance(a, Send)}


def test_a_join_waits_for_the_steps_end() -> None:
    m = running("a", "b")
    assert frames(arrive(m, "c")) == {"a": "plan", "b": "plan", "c": "leave"}


def test_a_loss_does_not() -> None:
    m = running("a", "b", "c")
    assert m.gone(1.0, "b") == []
    assert frames(m.broken(1.0, "a", m.epoch)) == {"a": "leave", "c": "leave"}
    assert [c.message for c in m.changes[-1:]] == ["b is gone"]


def test_a_loss_that_nobody_misses_is_found_soon() -> None:
    m = running("a", "b", "c")
    m.gone(1.0, "b")
    assert m.tick(1.5) == []
    assert frames(m.tick(1.1 + AWAY_SECONDS)) == {"a": "leave", "c": "leave"}


def test_a_broken_connection_costs_the_group_nothing() -> None:
    m = running("a", "b")
    epoch = m.epoch
    m.gone(1.0, "b")
    assert m.hello(1.5, "b", "b", "h", 1, group=epoch, peers=frozenset("ab")) == []
    m.beat(4.0, "a", Activity(), 0, 0)
    m.beat(4.0, "b", Activity(), 0, 0)
    assert m.tick(4.1) == []
    assert m.epoch == epoch


def test_a_join_passes_over_who_is_away() -> None:
    m = running("a", "b")
    m.gone(1.0, "b")
    assert frames(arrive(m, "c", now=1.2)) == {"a": "leave", "c": "leave"}
    assert frames(ready(m, "a", "c")) == {"a": "form", "c": "form"}


def test_who_is_lost_again_and_again_is_held_back() -> None:
    m = running("a", "b")
    for n in range(FLAPS):
        m.gone(1.0 + n, "b")
        m.broken(1.0 + n, "a", m.epoch)
        ready(m, "a")
        last = arrive(m, "b", now=1.5 + n)
        ready(m, *m.members)
    assert frames(last) == {"b": "leave"}
    assert [x.id for x in m.group] == ["a"]
    assert "b was lost 3 times in a minute: held back for 2 s" in m.changes[-1].message
    m.beat(6.0, "a", Activity(), 0, 0)
    assert frames(m.tick(6.0)) == {"a": "plan", "b": "leave"}
    ready(m, "a", "b")
    assert [x.id for x in m.group] == ["a", "b"]


def test_a_loss_during_a_planned_change_hurries_it() -> None:
    m = running("a", "b")
    arrive(m, "c")
    assert frames(m.gone(1.0, "b")) == {"a": "leave", "c": "leave"}


def test_a_group_that_breaks_before_a_planned_change_hurries_it() -> None:
    m = running("a", "b")
    group = m.epoch
    arrive(m, "c")
    assert frames(m.broken(1.0, "a", group)) == {"a": "leave", "b": "leave", "c": "leave"}


def test_a_join_storm_folds_into_one_epoch() -> None:
    m = running("a")
    before = m.epoch
    arrive(m, *(f"j{i}" for i in range(50)))
    assert m.epoch == before + 1
    assert len(frames(ready(m, "a", *(f"j{i}" for i in range(50))))) == 51


def test_below_the_minimum_training_waits() -> None:
    m = running("a", "b", minimum=2)
    m.gone(1.0, "b")
    m.broken(1.0, "a", m.epoch)
    assert ready(m, "a") == []
    assert m.state == "waiting"
    arrive(m, "c")
    assert frames(ready(m, "c")) == {"a": "form", "c": "form"}


def test_the_last_to_leave_saves() -> None:
    m = running("a", "b")
    m.leaving(1.0, "a")
    m.leaving(1.0, "b")
    gone = [a.frame for a in ready(m, "a", "b") if isinstance(a, Send)]
    assert [f["do"] for f in gone] == ["go", "go"]
    assert [f["save"] for f in gone] == [True, False]


def test_who_is_silent_is_dropped() -> None:
    m = running("a", "b")
    m.tick(0.0)
    actions: list[Action] = []
    for i in range(1, 50):
        now = i * 0.1
        m.beat(now, "a", Activity("waiting", 0.0), 0, 0)
        actions += m.tick(now)
    assert [a.id for a in actions if isinstance(a, Drop)] == ["b"]
    assert set(m.silent) == {"b"}
    assert frames(actions) == {"a": "leave"}


@pytest.mark.parametrize(("others", "dropped_after"), [("waiting", MISSED_SECONDS), ("computing", SILENCE_SECONDS)])
def test_who_is_missed_loses_its_place_sooner(others: Doing, dropped_after: float) -> None:
    m = running("a", "b")
    now = 0.0
    while "b" in m.members:
        m.beat(now, "a", Activity(others, 0.0), 0, 0)
        m.tick(now)
        now += 0.1
    assert now == pytest.approx(dropped_after, abs=0.25)


def test_who_comes_back_in_time_is_not_given_up() -> None:
    m = running("a", "b")
    for i in range(1, 100):
        m.beat(i * 0.1, "a", Activity("waiting", 0.0), 0, 0)
        m.tick(i * 0.1)
        if "b" not in m.members:
            m.hello(i * 0.1, "b", "b", "host", 1)
        if i * 0.1 > MISSED_SECONDS + 0.3:
            m.beat(i * 0.1, "b", Activity("waiting", 0.0), 0, 0)
    assert (set(m.members), m.silent) == ({"a", "b"}, {})


def test_a_coordinator_that_was_stopped_blames_nobody() -> None:
    m = running("a", "b")
    m.tick(0.0)
    assert m.tick(SILENCE_SECONDS * 10) == []


def test_who_computes_while_all_wait_is_hung() -> None:
    m = running("a", "b")
    for i in range(0, 400):
        now = i * 0.1
        m.beat(now, "a", Activity("waiting", 0.0), 0, 0)
        m.beat(now, "b", Activity("computing", 0.0), 0, 0)
        if any(isinstance(a, Drop) and a.id == "b" for a in m.tick(now)):
            assert now > 30
            return
    pytest.fail("b was never dropped")


def test_who_never_leaves_a_broken_group_is_hung() -> None:
    m = running("a", "b", "c")
    m.broken(0.0, "a", m.epoch)
    ready(m, "a", "c")
    dropped = []
    for i in range(0, 400):
        now = i * 0.1
        for id in "abc":
            m.beat(now, id, Activity("waiting" if id == "b" else "idle", -100.0), 0, 0)
        dropped += [a.id for a in m.tick(now) if isinstance(a, Drop)]
        assert not dropped or now > 30
    assert dropped == ["b"]
    assert [x.id for x in m.group] == ["a", "c"]


def test_a_long_pause_that_all_take_blames_nobody() -> None:
    m = running("a", "b")
    arrive(m, "c")
    ready(m, "c")
    for i in range(0, 600):
        now = i * 0.1
        m.beat(now, "c", Activity("idle", 0.0), 0, 0)
        for id in "ab":
            m.beat(now, id, Activity("computing", 0.0), 0, 0)
        assert m.tick(now) == []
    m.ready(now, "a", m.epoch)
    m.beat(now, "a", Activity("idle", now), 0, 0)
    for i in range(600, 650):
        m.beat(i * 0.1, "b", Activity("computing", 0.0), 0, 0)
        m.beat(i * 0.1, "a", Activity("idle", now), 0, 0)
        m.beat(i * 0.1, "c", Activity("idle", 0.0), 0, 0)
        assert m.tick(i * 0.1) == []


def test_all_who_wait_for_one_another_meet_again() -> None:
    m = running("a", "b")
    for i in range(0, 1300):
        now = i * 0.1
        for id in "ab":
            m.beat(now, id, Activity("waiting", 0.0), 0, 0)
        if actions := m.tick(now):
            assert frames(actions) == {"a": "leave", "b": "leave"}
            assert now > 120
            return
    pytest.fail("they wait for ever")


def test_an_announced_section_may_take_longer() -> None:
    m = running("a", "b")
    for i in range(0, 1000):
        now = i * 0.1
        m.beat(now, "a", Activity("waiting", 0.0), 0, 0)
        m.beat(now, "b", Activity("section", 0.0, bound=600), 0, 0)
        assert m.tick(now) == []


def test_a_new_coordinator_takes_a_running_group_over_as_it_is() -> None:
    m = Membership(2)
    both = frozenset({"a", "b"})
    assert m.hello(0.0, "a", "a", "h", 1, group=7, peers=both) == []
    assert frames(m.hello(0.1, "b", "b", "h", 1, group=7, peers=both)) == {"a": "adopt", "b": "adopt"}
    assert m.state == "running"
    assert coordinator_of(m.epoch) == 2


def test_a_group_that_was_taken_over_reports_whoever_came_back_first() -> None:
    coordinator = Coordinator(2, "token", 1, "namespace", "job")
    both = frozenset({"first", "second"})
    for id in ("second", "first"):
        coordinator._membership.hello(0.0, id, id, "h", 1, group=7, peers=both)
    coordinator._hear("stranger", {"is": "report", "step": 9})
    assert coordinator.progress().step == 0
    coordinator._hear("first", {"is": "report", "step": 5})
    assert coordinator.progress().step == 5


def test_a_new_coordinator_does_not_wait_for_ever_for_a_lost_member() -> None:
    m = Membership(2)
    m.hello(0.0, "a", "a", "h", 1, group=7, peers=frozenset({"a", "b"}))
    actions: list[Action] = []
    for i in range(int(SETTLE_SECONDS * 10) + 2):
        m.beat(i * 0.1, "a", Activity(), 0, 0)
        actions += m.tick(i * 0.1)
    assert frames(actions) == {"a": "leave"}


def test_workers_that_arrive_after_the_end_are_sent_home() -> None:
    m = running("a")
    m.done(1.0, "a")
    assert frames(arrive(m, "b")) == {"b": "finish"}


def test_a_launched_script_is_done_when_it_has_ended_on_all_workers() -> None:
    m = running("a", "b")
    assert m.ended(1.0, "a", m.epoch, failed=False) == []
    assert frames(m.ended(2.0, "b", m.epoch, failed=False)) == {"a": "finish", "b": "finish"}
    assert frames(arrive(m, "c")) == {"c": "finish"}


def test_a_script_that_ended_before_a_change_has_to_end_again() -> None:
    m = running("a", "b")
    m.ended(1.0, "a", m.epoch, failed=False)
    m.leaving(2.0, "b")
    ready(m, "a", "b")
    assert [x.id for x in m.group] == ["a"]
    assert not m.finished
    assert frames(m.ended(3.0, "a", m.epoch, failed=False)) == {"a": "finish"}


def test_who_fails_first_is_to_blame_and_the_others_go_on() -> None:
    m = running("a", "b", "c")
    epoch = m.epoch
    assert frames(m.ended(1.0, "b", epoch, failed=True)) == {"b": "fail", "a": "leave", "c": "leave"}
    assert m.ended(1.1, "a", epoch, failed=True) == []
    assert "b failed by itself" in m.changes[-1].message


def test_a_script_that_fails_because_another_worker_is_lost_is_not_to_blame() -> None:
    m = running("a", "b")
    m.gone(1.0, "b")
    assert frames(m.ended(1.5, "a", m.epoch, failed=True)) == {"a": "leave"}


def test_each_group_of_launched_scripts_has_a_port_of_its_own() -> None:
    m = Membership(1)
    arrive(m, "a")
    (form,) = m.ready(0.0, "a", m.epoch, port=4711)
    assert isinstance(form, Send)
    assert form.frame["port"] == 4711
