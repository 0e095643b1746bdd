"""What jobs, namespaces and the fleet may cost, and what a leader does with its time."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from adaptrain_operator import clock
from adaptrain_operator.controllers.status_writer import only_fast, progress_every
from adaptrain_operator.core.objects import owned, pods
from adaptrain_operator.core.plan import Event
from adaptrain_operator.kube import leader_election as leases
from adaptrain_operator.kube.errors import error
from adaptrain_operator.kube.leader_election import Election
from adaptrain_operator.runtime.events import AGAIN_AFTER, AT_ONCE, WAITING, Events
from adaptrain_operator.runtime.workqueue import Queue

from tests.support.operator_world import Object, World


def test_a_far_deadline_costs_one_entry_however_often_it_is_said() -> None:
    async def check() -> None:
        queue: Queue[str] = Queue()
        for _ in range(5000):
            for key in ("a", "b"):
                queue.add(key)
                assert await queue.get() == key
                queue.add(key, 604_800)
                queue.done(key)
        assert len(queue._heap) < 100

    asyncio.run(check())


def test_what_only_writes_numbers_never_takes_all_places() -> None:
    async def check() -> None:
        queue: Queue[int] = Queue(aside=2)
        for key in range(10):
            queue.add(key, aside=True)
        taken = [await queue.get() for _ in range(2)]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await queue.get()
        queue.add(100)
        assert await queue.get() == 100, "what changes the world goes first"
        queue.done(taken[0])
        assert await queue.get() in range(10)

    asyncio.run(check())


def test_one_decision_covers_both_lanes() -> None:
    async def check() -> None:
        queue: Queue[str] = Queue()
        queue.add("a", aside=True)
        queue.add("a")
        assert await queue.get() == "a"
        queue.add("a", 50, aside=True)
        queue.done("a")
        assert queue.depth() == 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await queue.get()

    asyncio.run(check())


def test_the_fleets_progress_has_a_budget() -> None:
    assert progress_every(1) == progress_every(100) <= 3.5
    assert 1000 / progress_every(1000) <= 18
    rates = [jobs / progress_every(jobs) for jobs in range(1, 5000, 50)]
    assert max(rates) <= 34
    before: Object = {"step": 1, "goodput": "99%"}
    assert only_fast({"step": 2, "goodput": "98%"}, before)
    assert not only_fast({"step": 2, "phase": "Pending"}, before)


class Api:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []

    async def create(self, kind: Any, namespace: str, body: Object) -> Object:
        await asyncio.sleep(0)
        self.sent.append((namespace, body["message"]))
        return body


class Subject:
    kind = "AdaptiveTrainingJob"

    def __init__(self, namespace: str, name: str) -> None:
        self.namespace, self.name, self.uid = namespace, name, f"{namespace}/{name}"


def test_noisy_objects_cost_others_no_event() -> None:
    async def check() -> None:
        api = Api()
        events = Events(api, "me")  # type: ignore[arg-type]
        noisy, quiet = [Subject("evil", str(n)) for n in range(40)], Subject("team", "quiet")
        for second in range(50):
            for one in noisy:
                for n in range(10):
                    events.tell(one, Event("Normal", "MembershipChanged", f"{second} {n}"))
        events.tell(quiet, Event("Warning", "WorkerSilent", "important"))
        assert events._outbox.qsize() <= WAITING + 1
        task = asyncio.create_task(events.send())
        for _ in range(2000):
            await asyncio.sleep(0)
        task.cancel()
        assert events._outbox.qsize() == 0
        counts = Counter(namespace for namespace, _ in api.sent)
        assert counts["team"] == 1
        assert counts["evil"] <= WAITING
        assert ("team", "important") in api.sent[:3], "namespaces take turns"

    asyncio.run(check())


def test_one_object_has_so_many_events_and_the_same_words_once() -> None:
    async def check() -> None:
        events = Events(Api(), "me")  # type: ignore[arg-type]
        one = Subject("ns", "one")
        for n in range(3 * AT_ONCE):
            for _ in range(2):
                events.tell(one, Event("Normal", "X", str(n)))
        assert events._outbox.qsize() == AT_ONCE
        assert len(events._said) == 1

    asyncio.run(check())


class Kept(Api):
    """An API server that keeps events until it forgets them."""

    def __init__(self) -> None:
        super().__init__()
        self.events: dict[str, Object] = {}

    async def create(self, kind: Any, namespace: str, body: Object) -> Object:
        assert body["metadata"]["name"] not in self.events
        self.events[body["metadata"]["name"]] = body
        return body

    async def replace(self, kind: Any, namespace: str, body: Object) -> Object:
        if body["metadata"]["name"] not in self.events:
            raise error(404, "NotFound", "")
        self.events[body["metadata"]["name"]] = body
        return body


def test_an_event_that_comes_again_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        api, now = Kept(), 1000.0
        monkeypatch.setattr(clock, "now", lambda: now)
        events = Events(api, "me")  # type: ignore[arg-type]
        task = asyncio.create_task(events.send())

        async def come(times: int) -> list[int]:
            for _ in range(times):
                events.tell(Subject("ns", "one"), Event("Warning", "WorkerFailed", "boom"))
            for _ in range(20):
                await asyncio.sleep(0)
            return [event["count"] for event in api.events.values()]

        assert await come(3) == [1]
        now += AGAIN_AFTER
        assert await come(1) == [4]
        api.events.clear()
        now += AGAIN_AFTER
        assert await come(1) == [5]
        (event,) = api.events.values()
        assert (event["firstTimestamp"], event["lastTimestamp"]) == ("1970-01-01T00:16:40Z", "1970-01-01T00:18:40Z")
        task.cancel()

    asyncio.run(check())


class Hurried(asyncio.SelectorEventLoop):
    """Time jumps to the next timer."""

    now = 1000.0

    def time(self) -> float:
        return Hurried.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            Hurried.now = max(Hurried.now, self._scheduled[0]._when)  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


class LeaseApi:
    """Renews once, then fails a number of times, each after a while, and then is silent."""

    def __init__(self, failures: int, slow: float) -> None:
        self.failures, self.slow, self.asked, self.renewed = failures, slow, 0, 0.0

    async def get(self, *_: Any) -> Object:
        self.asked += 1
        if self.asked > 1 + self.failures:
            await asyncio.sleep(3600)
        if self.asked > 1:
            await asyncio.sleep(self.slow)
            raise error(500, "etcd", "leader changed")
        spec = {"holderIdentity": "me", "leaseDurationSeconds": 15}
        return {"metadata": {"resourceVersion": "1"}, "spec": spec}

    async def replace(self, kind: Any, namespace: str, body: Object, timeout: float = 15) -> Object:
        self.renewed = Hurried.now
        await asyncio.sleep(self.slow)
        return body


@pytest.mark.parametrize("failures", range(6))
@pytest.mark.parametrize("slow", [0.0, 0.8, 2.0])
def test_a_leader_stops_before_another_may_lead(monkeypatch: pytest.MonkeyPatch, failures: int, slow: float) -> None:
    monkeypatch.setattr(leases.time, "monotonic", lambda: Hurried.now)
    api = LeaseApi(failures, slow)

    async def check() -> None:
        election = Election(api, "ns", "lease", "me", 15.0)  # type: ignore[arg-type]
        assert await election._try("acquired")
        assert election.leads()
        await election.hold()
        assert not election.leads()
        assert Hurried.now - api.renewed <= 10.0 + 1e-6

    loop = Hurried()
    try:
        loop.run_until_complete(check())
    finally:
        loop.close()


def test_a_process_that_was_stopped_knows_that_it_no_longer_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases.time, "monotonic", lambda: Hurried.now)
    loop, api = Hurried(), LeaseApi(0, 0.0)
    election = Election(api, "ns", "lease", "me", 15.0)  # type: ignore[arg-type]
    try:
        loop.run_until_complete(election._try("acquired"))
    finally:
        loop.close()
    assert election.leads()
    Hurried.now += 11
    assert not election.leads()


def test_a_large_spec_is_worked_on_once_for_each_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.settle()
    built: list[str] = []
    monkeypatch.setattr(owned, "_config_map", lambda job: built.append("again"))
    monkeypatch.setattr(pods, "_template_hash", lambda job: built.append("again"))
    first = owned.config_map(world.job)
    for _ in range(5):
        world.now += 1
        world.answer(step=int(world.now))
        world.step()
    assert owned.config_map(world.job) is first
    assert not built
    world.spec = world.spec.model_copy(update={"seed": 7})
    owned.config_map(world.job)
    assert built


def test_a_large_specs_progress_is_written_seldom() -> None:
    assert progress_every(1, 1_400_000) > 20 * progress_every(1, 2000)
