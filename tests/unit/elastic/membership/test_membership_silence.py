"""Workers that are silent, missed or hung: who is dropped, when, and who isn't."""

import pytest
from adaptrain.elastic.membership.state_machine import (
    ASIDE_SECONDS,
    MISSED_SECONDS,
    Action,
    Activity,
    Doing,
    Drop,
    Membership,
)
from adaptrain.rpc.framing import SILENCE_SECONDS

from tests.support.memberships import arrive, frames, ready, running


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


def beats(m: Membership, now: float, **doing: tuple[Doing, float]) -> list[Action]:
    for id, (what, since) in doing.items():
        m.beat(now, id, Activity(what, since, 1800.0 if what == "warming" else 30.0), 0, 0)
    return m.tick(now)


def test_who_compiles_its_first_step_is_set_aside_and_joins_when_it_is_done() -> None:
    m = running("a", "b", "c")
    actions: list[Action] = []
    now = 0.0
    while now < 45.0:
        now += 0.1
        for to in frames(actions):
            if to != "c":
                m.ready(now, to, m.epoch)
        waits = ("waiting", 0.0) if len(m.group) == 3 else ("computing", now)
        actions = beats(m, now, a=waits, b=waits, c=("warming", 0.0))
        assert not any(isinstance(action, Drop) for action in actions)
        if now > ASIDE_SECONDS + 1:
            assert [member.id for member in m.group] == ["a", "b"], "they go on"
            assert m.joining == ["c"], "and the operator is told that it is still there"
    opened = m.ready(now, "c", m.epoch - 1)
    assert frames(opened) == {"a": "plan", "b": "plan", "c": "leave"}
    assert set(frames([action for id in ("a", "b", "c") for action in m.ready(now, id, m.epoch)])) == {"a", "b", "c"}
    assert len(m.group) == 3
    assert m.silent == {}
    assert m._losses == {}, "nobody was lost"


@pytest.mark.parametrize("end", ["silent", "gone", "leaving", "too long"])
def test_who_was_set_aside_may_be_lost_or_leave(end: str) -> None:
    m = running("a", "b")
    now, actions = 0.0, []
    while not m._aside:
        now += 0.1
        actions = beats(m, now, a=("waiting", 0.0), b=("warming", 0.0))
    assert frames(actions) == {"a": "leave", "b": "leave"}
    ready(m, "a")
    assert len(m.group) == 1
    match end:
        case "gone":
            m.gone(now, "b")
        case "leaving":
            assert frames(m.leaving(now, "b")) == {"b": "go"}
        case "silent":
            while m._aside:
                now += 0.1
                actions = beats(m, now, a=("computing", now))
            assert [action.id for action in actions if isinstance(action, Drop)] == ["b"]
        case "too long":
            while m._aside:
                now += 1
                actions = beats(m, now, a=("computing", now), b=("warming", 0.0))
            assert 1800 < now < 1810
            assert [action.id for action in actions if isinstance(action, Drop)] == ["b"]
    assert m.joining == []
    assert len(m.group) == 1, "the others go on"


def test_a_first_step_that_all_work_on_or_that_too_few_are_left_without_is_waited_for() -> None:
    m = running("a", "b")
    for i in range(1, 600):
        assert beats(m, i * 0.1, a=("warming", 0.0), b=("warming", 0.0)) == []
    m = running("a", "b", minimum=2)
    for i in range(1, 600):
        assert beats(m, i * 0.1, a=("waiting", 0.0), b=("warming", 0.0)) == []


def test_a_long_operation_is_waited_for_as_long_as_it_was_said_to_take() -> None:
    m = running("a", "b")
    for i in range(1, 600):
        now = i * 0.1
        m.beat(now, "a", Activity("waiting", 0.0), 0, 0)
        m.beat(now, "b", Activity("section", 0.0, 300.0), 0, 0)
        assert m.tick(now) == []
