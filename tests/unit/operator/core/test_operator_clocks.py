"""No two machines' clocks are compared: nodes may be minutes off, and the operator's own clock may be set."""

import time
from datetime import timedelta

import pytest
from adaptrain_operator import clock
from adaptrain_operator.core.observed import Lease, Pod, moment
from adaptrain_operator.core.sightings import sighted
from adaptrain_operator.kube.kinds import POD
from adaptrain_operator.runtime.cache import Cache
from adaptrain_operator.runtime.node_leases import seen_again

from tests.support.operator_world import T0, World, stamp
from tests.unit.operator.runtime.test_operator_parts import obj

SKEWS = [-3600.0, -60.0, -5.0, 0.0, 5.0, 60.0, 3600.0]


@pytest.mark.parametrize("skew", SKEWS)
def test_a_node_is_lost_when_its_lease_stays_the_same_under_our_eyes(skew: float) -> None:
    lease, renewals = None, 0
    for second in range(40):
        now = T0 + second
        lease = seen_again(lease, now // 10 * 10 + skew, now)
        assert not lease.stale, "it is renewed every ten seconds"
        renewals += lease.renewed_after(T0 + 15)
    assert renewals
    assert lease is not None
    last, found = lease.renewed, []
    for second in range(40, 60):
        lease = seen_again(lease, last, T0 + second)
        found.append(lease.stale)
    assert not any(found[:3])
    assert all(found[-5:])
    assert not seen_again(lease, last, T0 + 120).stale, "after we looked away it counts anew"


def test_a_first_glance_says_neither_that_a_node_is_lost_nor_that_it_is_back() -> None:
    lease = seen_again(None, T0 + 1000, T0)
    assert not lease.stale
    assert not lease.renewed_after(T0 - 100)


@pytest.mark.parametrize("skew", SKEWS)
def test_failures_count_once_each_whatever_the_nodes_clock_says(skew: float) -> None:
    world = World(maxRestarts=50, workers={"min": 1, "max": 2, "replicas": 1})
    world.settle()
    for expected in range(1, 5):
        world.now += 100
        world.answer()
        [name] = world.active()
        now, world.now = world.now, world.now + skew
        world.end(name, 1)
        world.now = now
        for _ in range(3):
            world.step()
            world.now += 1
        assert world.status.restarts == expected
        waited = 0
        while not world.active():
            world.now += 1
            waited += 1
            world.step()
            assert waited <= 2**expected + 2
        world.start()
        world.answer()


def test_an_operator_that_starts_counts_no_failure_again() -> None:
    world = World(maxRestarts=50)
    world.settle()
    world.now += 30
    world.end(world.active()[0], 1)
    world.step()
    assert world.status.restarts == 1
    for offset in (60.0, -120.0, 3600.0, -7200.0):
        world.now += offset  # another machine, with another clock
        world.sighted = {}
        world.step()
        assert world.status.restarts == 1
    world.now += 100
    world.end(world.active()[0], 1)
    world.step()
    assert world.status.restarts == 2


def test_an_operator_of_before_left_no_numbers_and_its_failures_are_not_counted_again() -> None:
    world = World(maxRestarts=50)
    world.settle()
    world.end(world.active()[0], 1)
    world.status = world.status.model_copy(update={"restarts": 1, "last_failure_time": moment(world.now)})
    world.step()
    assert world.status.restarts == 1


def test_times_from_the_future_are_of_another_clock() -> None:
    world = World(activeDeadlineSeconds=100)
    world.settle()
    ahead = moment(world.now) + timedelta(hours=1)
    world.status = world.status.model_copy(update={"start_time": ahead, "restarts": 3, "last_failure_time": ahead})
    world.answer()
    assert world.step().status.start_time == moment(world.now)
    assert world.status.last_failure_time == moment(world.now)
    world.now += 101
    world.answer()
    assert world.step().status.phase == "Failed"


@pytest.mark.parametrize("skew", SKEWS)
def test_a_pods_states_count_from_when_we_saw_them(skew: float) -> None:
    world = World()
    world.settle()
    raw = world.pods["job-worker-0"]
    raw["metadata"]["creationTimestamp"] = stamp(T0 + skew)
    raw["status"]["containerStatuses"] = [{"state": {"running": {"startedAt": stamp(T0 + skew)}}}]
    first = sighted(Pod.read(raw), None, T0)
    again = sighted(Pod.read(raw), first, T0 + 50)
    assert (first.created, first.running_since) == (again.created, again.running_since) == (T0, T0)
    raw["metadata"] |= {"deletionTimestamp": stamp(T0 + skew), "deletionGracePeriodSeconds": 30}
    deleted = sighted(Pod.read(raw), again, T0 + 60)
    assert sighted(Pod.read(raw), deleted, T0 + 70).deleting_until == T0 + 90
    raw["metadata"]["deletionGracePeriodSeconds"] = 1
    assert sighted(Pod.read(raw), deleted, T0 + 70).deleting_until == T0 + 71
    ended = {"exitCode": 1, "startedAt": stamp(T0 + skew), "finishedAt": stamp(T0 + 40 + skew)}
    raw["status"] = {"phase": "Failed", "containerStatuses": [{"state": {"terminated": ended}}]}
    late = sighted(Pod.read(raw), None, T0 + 500)
    assert late.exit is not None
    assert (late.created, late.exit.started, late.exit.finished) == (T0 + 460, T0 + 460, T0 + 500)


def test_the_cache_keeps_our_own_times() -> None:
    cache = Cache()
    running = {"status": {"phase": "Running", "containerStatuses": [{"state": {"running": {"startedAt": stamp(0)}}}]}}
    cache.put(POD, obj("a-1", 5, **running))
    [(_, pod)] = cache.pods(("ns", "job"), "job-uid")
    assert pod.running_since is not None
    assert abs(pod.running_since - clock.now()) < 60


def test_the_operators_time_goes_on_when_its_clock_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    before = clock.now()
    monkeypatch.setattr(time, "time", lambda: before + 3600)
    assert 0 <= clock.now() - before < 60
    monkeypatch.setattr(time, "time", lambda: before - 3600)
    assert 0 <= clock.now() - before < 60


def test_a_lease_has_no_time_of_its_own() -> None:
    assert not Lease(0.0, T0, T0 + 5).stale
    assert Lease(T0 + 99999, T0, T0 + 13).stale
