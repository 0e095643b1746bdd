"""Workers that say hello before they are prepared: known, and waited for by nobody."""

import pytest
from adaptrain.elastic.membership.state_machine import (
    FLAPS,
    GATHER_SECONDS,
    PREPARING_SILENCE_SECONDS,
    Activity,
    Drop,
    Membership,
)
from adaptrain.rpc.framing import SILENCE_SECONDS

from tests.support.memberships import arrive, frames, ready, running


def prepare(m: Membership, *ids: str, now: float = 0.0) -> None:
    for id in ids:
        assert m.hello(now, id, id, "h", 1, preparing=True) == []


def test_who_prepares_disturbs_nobody_and_joins_once_it_is_prepared() -> None:
    m = running("a", "b")
    epoch = m.epoch
    prepare(m, "c")
    for i in range(1, 600):
        now = i * 0.1
        for id in "abc":
            m.beat(now, id, Activity("computing", now), 1, 1)
        assert m.tick(now) == []
    assert (m.epoch, m.state) == (epoch, "running")
    assert (m.joining, m.preparing, m.here) == (["c"], ["c"], 3)
    assert frames(m.prepared(now, "c")) == {"a": "plan", "b": "plan", "c": "leave"}
    assert frames(ready(m, "a", "b", "c")) == {"a": "form", "b": "form", "c": "form"}
    assert [member.id for member in m.group] == ["a", "b", "c"], "the newest is last"
    assert m.preparing == []


def test_who_is_prepared_already_is_not_let_in_again() -> None:
    m = running("a")
    assert m.prepared(1.0, "a") == []
    assert m.prepared(1.0, "stranger") == []
    assert [member.id for member in m.group] == ["a"]


def test_a_job_that_nobody_trains_waits_a_moment_for_those_who_prepare() -> None:
    m = Membership(1)
    prepare(m, "b", "c")
    arrive(m, "a", now=10.0)
    assert m.ready(10.0, "a", m.epoch) == []
    assert m.state == "forming"
    m.prepared(11.0, "b")
    assert m.ready(11.0, "b", m.epoch) == [], "c may be prepared in a moment"
    m.prepared(11.5, "c")
    assert frames(m.ready(11.5, "c", m.epoch)) == {"a": "form", "b": "form", "c": "form"}
    assert len(m.changes) == 3, "nobody was there before the others"


def test_who_prepares_for_long_is_not_waited_for() -> None:
    m = Membership(1)
    prepare(m, "b")
    arrive(m, "a")
    m.ready(0.0, "a", m.epoch)
    now, began = 0.0, {}
    while not began:
        now += 0.1
        m.beat(now, "a", Activity("idle", 0.0), 0, 0)
        m.beat(now, "b", Activity("idle", 0.0), 0, 0)
        began = frames(m.tick(now))
        if now < GATHER_SECONDS - 0.2:
            prepare(m, f"more-{now:.1f}", now=now)
    assert began == {"a": "form"}
    assert now == pytest.approx(GATHER_SECONDS, abs=0.2), "those that come meanwhile don't make it longer"


@pytest.mark.parametrize("end", ["gone", "leaving"])
def test_who_prepares_no_more_is_not_waited_for(end: str) -> None:
    m = Membership(1)
    prepare(m, "b")
    arrive(m, "a")
    assert ready(m, "a") == []
    actions = m.gone(1.0, "b") if end == "gone" else m.leaving(1.0, "b")
    assert frames(actions) == {"a": "form"} | ({"b": "go"} if end == "leaving" else {})
    assert m.joining == []


def test_survivors_of_a_loss_wait_for_nobody_who_prepares() -> None:
    m = running("a", "b")
    prepare(m, "c")
    m.broken(1.0, "a", m.epoch)
    m.gone(1.0, "b")
    assert frames(ready(m, "a")) == {"a": "form"}


def test_a_job_below_its_minimum_waits_for_as_long_as_it_takes() -> None:
    m = Membership(1, minimum=2)
    arrive(m, "a")
    prepare(m, "b")
    ready(m, "a")
    for i in range(1, 1000):
        m.beat(i * 0.1, "a", Activity("idle", 0.0), 0, 0)
        m.beat(i * 0.1, "b", Activity("idle", 0.0), 0, 0)
        assert m.tick(i * 0.1) == []
    assert m.state == "waiting"
    m.prepared(100.0, "b")
    assert frames(m.ready(100.0, "b", m.epoch)) == {"a": "form", "b": "form"}


def test_the_silence_of_an_import_is_no_loss() -> None:
    m = running("a")
    prepare(m, "b")
    now, dropped = 0.0, []
    while not dropped:
        now += 0.1
        m.beat(now, "a", Activity("waiting", now), 1, 1)
        dropped = [action.id for action in m.tick(now) if isinstance(action, Drop)]
    assert dropped == ["b"]
    assert now > PREPARING_SILENCE_SECONDS > 10 * SILENCE_SECONDS
    assert (m.joining, m.silent) == ([], {})
    assert m._losses == {}, "it was no member"
    assert m.state == "running"


def test_who_comes_and_goes_while_it_prepares_is_not_held_back() -> None:
    m = running("a")
    for n in range(3 * FLAPS):
        prepare(m, "b", now=n * 0.1)
        m.gone(n * 0.1, "b")
    prepare(m, "b", now=10.0)
    assert frames(m.prepared(10.0, "b")) == {"a": "plan", "b": "leave"}


@pytest.mark.parametrize("script", [False, True])
def test_who_prepares_as_training_ends_may_go(script: bool) -> None:
    m = running("a")
    prepare(m, "b")
    actions = m.ended(1.0, "a", m.epoch, failed=False) if script else m.done(1.0, "a")
    assert frames(actions)["b"] == "finish"
    assert m.preparing == []
    assert frames(m.hello(2.0, "c", "c", "h", 1, preparing=True)) == {"c": "finish"}


def test_a_new_coordinator_takes_a_group_over_whoever_prepares_beside_it() -> None:
    m = Membership(2)
    prepare(m, "c")
    both = frozenset("ab")
    assert m.hello(0.1, "a", "a", "h", 1, group=7, peers=both) == []
    m.prepared(0.2, "c")
    prepare(m, "d", now=0.2)
    taken = frames(m.hello(0.3, "b", "b", "h", 1, group=7, peers=both))
    assert taken == {"a": "plan", "b": "plan", "c": "leave"}, "taken over, and then c joins"
    assert m.preparing == ["d"]


def test_who_says_that_it_prepares_and_is_in_a_group_is_in_that_group() -> None:
    m = Membership(2)
    m.hello(0.0, "a", "a", "h", 1, group=7, peers=frozenset("a"), preparing=True)
    assert [member.id for member in m.group] == ["a"]
