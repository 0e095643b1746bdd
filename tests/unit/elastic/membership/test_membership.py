"""Joining and leaving, planned and not: what the membership tells the workers."""

from adaptrain.elastic.membership.coordinator import Coordinator
from adaptrain.elastic.membership.state_machine import (
    AWAY_SECONDS,
    FLAPS,
    SETTLE_SECONDS,
    Action,
    Activity,
    Membership,
    Send,
    coordinator_of,
)

from tests.support.memberships import arrive, frames, ready, running


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


def test_who_has_trained_is_told_from_its_first_word_on() -> None:
    """The operator must not take a new worker that will fail in its first step for one that trains."""
    coordinator = Coordinator(1, "token", 1, "namespace", "job")
    m = coordinator._membership
    for id, trained in (("new", False), ("back", True), ("older release", None)):
        m.hello(0.0, id, id, "h", 1, trained=trained)
    ready(m, "new", "back", "older release")

    def told() -> dict[str, bool | None]:
        return {member.id: member.trained for member in coordinator.progress().members}

    assert told() == {"new": False, "back": True, "older release": None}
    beat = {"is": "beating", "doing": "waiting", "age": 0.0, "version": 1, "step": 7}
    coordinator._hear("older release", beat)
    coordinator._hear("new", beat | {"trained": False})
    assert told() == {"new": False, "back": True, "older release": None}
    coordinator._hear("new", beat | {"trained": True})
    assert told()["new"] is True


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
