"""The operator's parts that need no cluster: queue, cache, settings, and pulling progress over real sockets."""

import asyncio
import time
from typing import Any

import pytest
from adaptrain_operator.core import naming
from adaptrain_operator.kube.errors import AlreadyExists, Conflict, NotFound, Refused, Unavailable, error
from adaptrain_operator.kube.kinds import JOB, NODE, POD, SERVICE
from adaptrain_operator.runtime import coordinator_poller
from adaptrain_operator.runtime.cache import Cache
from adaptrain_operator.runtime.coordinator_poller import CoordinatorPoller
from adaptrain_operator.runtime.workqueue import Queue
from adaptrain_operator.settings import Settings
from aiohttp import web

from tests.support.protocol import Guarded

Object = dict[str, Any]


def obj(name: str, version: int, uid: str = "", owner: str = "job-uid", role: str = "worker", **more: Any) -> Object:
    return {
        "metadata": {
            "name": name,
            "namespace": "ns",
            "uid": uid or f"uid-{name}",
            "resourceVersion": str(version),
            "labels": {naming.JOB_NAME: "job", naming.ROLE: role},
            "ownerReferences": [{"uid": owner, "controller": True}],
        },
        "spec": {},
        "status": {},
        **more,
    }


def test_the_cache_keeps_the_newest() -> None:
    cache = Cache()
    assert cache.put(POD, obj("a-1", 5)) == {("ns", "job")}
    assert cache.put(POD, obj("a-1", 4, status={"phase": "Failed"})) == set()
    assert cache.put(POD, obj("a-1", 5)) == set()
    [(role, pod)] = cache.pods(("ns", "job"), "job-uid")
    assert (role, pod.phase, pod.number) == ("worker", "Pending", 1)


def test_a_deleted_object_never_comes_back() -> None:
    cache = Cache()
    cache.put(POD, obj("a-1", 5))
    assert cache.drop(POD, obj("a-1", 6)) == {("ns", "job")}
    assert cache.put(POD, obj("a-1", 7)) == set()
    assert cache.put(POD, obj("a-1", 8, uid="another")) == {("ns", "job")}
    assert cache.drop(POD, obj("a-1", 9)) == set()
    assert len(cache.pods(("ns", "job"), "job-uid")) == 1


def test_children_of_another_job_of_the_same_name_are_not_ours() -> None:
    cache = Cache()
    cache.put(POD, obj("a-1", 5, owner="earlier"))
    cache.put(SERVICE, obj("s", 6, owner="earlier"))
    assert cache.pods(("ns", "job"), "job-uid") == []
    assert cache.children(("ns", "job"), "job-uid") == {}


def test_a_listing_drops_what_it_lacks_but_not_what_is_newer() -> None:
    cache = Cache()
    for name, version in (("old-1", 5), ("kept-2", 6), ("new-3", 20)):
        cache.put(POD, obj(name, version))
    assert cache.keep_only(POD, {("ns", "kept-2")}, 10, ()) == {("ns", "job")}
    assert sorted(pod.name for _, pod in cache.pods(("ns", "job"), "job-uid")) == ["kept-2", "new-3"]
    assert cache.keep_only(POD, set(), 10, ("elsewhere",)) == set()


def test_a_node_concerns_the_jobs_on_it_and_only_when_it_changes() -> None:
    cache = Cache()
    cache.sees_nodes = True
    cache.put(POD, obj("a-1", 1, spec={"nodeName": "n"}))
    node: Object = {"metadata": {"name": "n", "uid": "n", "resourceVersion": "1"}, "spec": {}, "status": {}}
    assert cache.put(NODE, node) == set()
    node["metadata"]["resourceVersion"] = "2"
    assert cache.put(NODE, node) == set()
    node["metadata"]["resourceVersion"] = "3"
    assert cache.put(NODE, {**node, "spec": {"unschedulable": True}}) == {("ns", "job")}


def test_phases_are_counted() -> None:
    cache = Cache()
    cache.put(JOB, {"metadata": {"name": "j", "namespace": "ns", "uid": "u", "resourceVersion": "1"}, "spec": {}})
    assert cache.phases()["Pending"] == 1


def test_the_queue_holds_each_key_once_and_the_earliest_time_counts() -> None:
    async def check() -> None:
        queue: Queue[str] = Queue()
        queue.add("a", 10)
        queue.add("a", 0.01)
        queue.add("a", 5)
        queue.add("b", 0)
        assert await queue.get() == "b"
        assert await queue.get() == "a"
        queue.done("a")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await queue.get()

    asyncio.run(check())


def test_a_key_that_is_worked_on_is_not_handed_out_twice() -> None:
    async def check() -> None:
        queue: Queue[str] = Queue()
        queue.add("a")
        assert await queue.get() == "a"
        queue.add("a")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await queue.get()
        queue.done("a")
        async with asyncio.timeout(1):
            assert await queue.get() == "a"

    asyncio.run(check())


def test_back_off_is_per_key_and_ends_with_success() -> None:
    queue: Queue[str] = Queue()
    assert [queue.retry("a") for _ in range(3)] == [0.2, 0.4, 0.8]
    assert queue.retry("b") == 0.2
    queue.succeeded("a")
    assert queue.retry("a") == 0.2
    assert max(queue.retry("a") for _ in range(50)) == 60.0


def test_an_overdue_key_is_noticed() -> None:
    queue: Queue[str] = Queue()
    queue.add("a", -70)
    assert queue.overdue() > 60


@pytest.mark.parametrize(
    ("status", "reason", "kind"),
    [
        (404, "NotFound", NotFound),
        (409, "AlreadyExists", AlreadyExists),
        (409, "Conflict", Conflict),
        (403, "Forbidden", Refused),
        (422, "Invalid", Refused),
        (429, "TooManyRequests", Unavailable),
        (503, "ServiceUnavailable", Unavailable),
        (0, "NoAnswer", Unavailable),
    ],
)
def test_classes_of_errors(status: int, reason: str, kind: type[Exception]) -> None:
    assert type(error(status, reason, "")) is kind


def test_settings_come_from_the_environment() -> None:
    prefix = "ADAPTRAIN_OPERATOR_"
    read = Settings.from_env(
        {prefix + "NAMESPACES": "a, b", prefix + "PORT": "9", prefix + "IDENTITY": "", "HOME": "x"}
    )
    assert (read.namespaces, read.port) == (("a", "b"), 9)
    assert read.identity
    with pytest.raises(ValueError, match="lease_nmae"):
        Settings.from_env({prefix + "LEASE_NMAE": "x"})


class Answers:
    """Coordinators on addresses of the loopback network."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, port: int) -> None:
        monkeypatch.setattr(coordinator_poller, "HTTP_PORT", port)
        monkeypatch.setattr(coordinator_poller, "INTERVAL", 0.1)
        monkeypatch.setattr(coordinator_poller, "UNREACHED_INTERVAL", 0.3)
        self.port = port
        self.body: Object = {"number": 1, "step": 3}
        self.runners: dict[str, web.AppRunner] = {}
        self.changed: list[tuple[str, str]] = []
        self.distrusted: list[tuple[str, str]] = []
        self.puller = CoordinatorPoller(self.changed.append, self.distrusted.append)

    async def listen(self, address: str) -> None:
        guarded = Guarded("secret")

        async def say() -> Object:
            return self.body

        async def answer(request: web.Request) -> web.Response:
            return await guarded.answer(request, say)

        app = web.Application()
        app.add_routes([web.get("/progress", answer)])
        self.runners[address] = web.AppRunner(app, access_log=None)
        await self.runners[address].setup()
        await web.TCPSite(self.runners[address], address, self.port).start()

    async def close(self, address: str) -> None:
        await self.runners.pop(address).cleanup()

    async def until(self, check: Any, seconds: float = 5) -> None:
        deadline = time.monotonic() + seconds
        while not check():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch, unused_port: int) -> Answers:
    return Answers(monkeypatch, unused_port)


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


KEY, OTHER = ("ns", "one"), ("ns", "two")


def test_a_coordinators_life_as_seen_by_pulling(answers: Answers) -> None:
    async def check() -> None:
        await answers.listen("127.0.0.1")
        puller = answers.puller
        puller.ask(KEY, 1, "127.0.0.1", "a", "secret")
        await answers.until(lambda: puller.contact(KEY).answered is not None)
        contact = puller.contact(KEY)
        assert contact.fresh(time.time())
        assert contact.progress is not None
        assert contact.progress.step == 3
        quiet = len(answers.changed)
        await asyncio.sleep(0.4)
        assert len(answers.changed) == quiet
        await answers.close("127.0.0.1")
        await answers.until(lambda: puller.contact(KEY).lost_since is not None)
        assert not puller.contact(KEY).cut_off
        # Another takes over: what is known of training stays until it answers.
        puller.ask(KEY, 2, "127.0.0.2", "b", "secret")
        contact = puller.contact(KEY)
        assert (contact.number, contact.answered, contact.lost_since) == (2, None, None)
        assert contact.progress is not None
        assert not contact.fresh(time.time())
        await answers.listen("127.0.0.2")
        await asyncio.sleep(0.5)
        assert puller.contact(KEY).answered is None, "one that gives another number is not believed"
        answers.body = {"number": 2}
        await answers.until(lambda: puller.contact(KEY).answered is not None)
        await puller.close()
        await answers.close("127.0.0.2")

    asyncio.run(check())


def test_one_that_never_answered_is_not_lost(answers: Answers) -> None:
    async def check() -> None:
        answers.puller.ask(KEY, 1, "127.0.0.9", "a", "secret")
        await asyncio.sleep(0.8)
        contact = answers.puller.contact(KEY)
        assert (contact.answered, contact.lost_since) == (None, None)
        await answers.puller.close()

    asyncio.run(check())


def test_all_lost_at_once_on_different_nodes_means_that_we_are_cut_off(answers: Answers) -> None:
    async def check() -> None:
        puller = answers.puller
        for key, address, node in ((KEY, "127.0.0.1", "a"), (OTHER, "127.0.0.2", "b")):
            await answers.listen(address)
            puller.ask(key, 1, address, node, "secret")
        await answers.until(lambda: all(puller.contact(key).answered is not None for key in (KEY, OTHER)))
        await answers.close("127.0.0.1")
        await answers.until(lambda: puller.contact(KEY).lost_since is not None)
        assert not puller.contact(KEY).cut_off
        await answers.close("127.0.0.2")
        await answers.until(lambda: puller.contact(OTHER).lost_since is not None)
        assert puller.contact(KEY).cut_off
        await puller.close()

    asyncio.run(check())


def test_a_refused_token_is_read_again(answers: Answers) -> None:
    async def check() -> None:
        await answers.listen("127.0.0.1")
        answers.puller.ask(KEY, 1, "127.0.0.1", "a", "stale")
        await answers.until(lambda: answers.distrusted == [KEY] * len(answers.distrusted) != [])
        answers.puller.ask(KEY, 1, "127.0.0.1", "a", "secret")
        await answers.until(lambda: answers.puller.contact(KEY).answered is not None)
        await answers.puller.close()
        await answers.close("127.0.0.1")

    asyncio.run(check())


def test_nonsense_is_not_believed(answers: Answers) -> None:
    async def check() -> None:
        await answers.listen("127.0.0.1")
        answers.body = {"number": "many"}
        answers.puller.ask(KEY, 1, "127.0.0.1", "a", "secret")
        await asyncio.sleep(0.4)
        assert answers.puller.contact(KEY).answered is None
        await answers.puller.close()
        await answers.close("127.0.0.1")

    asyncio.run(check())
