"""The operator process: stand by, lead while the Lease is held, and leave as soon as it isn't.

Whatever breaks ends the process, and the kubelet starts another one: starting is cheap and loses nothing, so there is
one way to recover instead of one per fault.
"""

import asyncio
import contextlib
import logging
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import kopf
from adaptrain_api.base import ALLOWED
from adaptrain_api.search.job import POOL

from adaptrain_operator import logs, metrics
from adaptrain_operator.controllers import watch
from adaptrain_operator.controllers.base import Runtime
from adaptrain_operator.controllers.job import Reconciler
from adaptrain_operator.controllers.search import SearchReconciler
from adaptrain_operator.core import naming
from adaptrain_operator.health import serve
from adaptrain_operator.kube.client import Client
from adaptrain_operator.kube.errors import ApiError, Refused
from adaptrain_operator.kube.kinds import NODE
from adaptrain_operator.kube.leader_election import Election
from adaptrain_operator.runtime.cache import Cache
from adaptrain_operator.runtime.coordinator_poller import CoordinatorPoller
from adaptrain_operator.runtime.events import Events
from adaptrain_operator.runtime.node_leases import NodeLeases
from adaptrain_operator.runtime.workqueue import Queue
from adaptrain_operator.settings import Settings
from adaptrain_operator.tasks import forever

logger = logging.getLogger(__name__)

STUCK = 60.0
"""Seconds without a turn of the loop after which the kubelet should start us anew. A long queue is no reason to: one
that starts anew has everything to do."""


DEEPEST = 60_000
"""Calls within calls. The API server takes objects of 10,000 levels: one that can't be parsed would make each listing
fail, and so every tenant's job wait."""
SEARCHERS = 4
"""Searches that are decided at once."""


class Operator:
    """One process, as leader or standing by."""

    def __init__(self, settings: Settings, client: Client, lease_client: Client | None = None) -> None:
        """
        Args:
            lease_client: for the Lease alone, so that no other request keeps its renewal waiting; absent: ``client``.
        """
        self._settings = settings
        self._client = client
        self._cache = Cache()
        self._queue: Queue[tuple[str, str]] = Queue()
        self._searches: Queue[tuple[str, str]] = Queue()
        self._runtime = Runtime(
            client, self._cache, self._queue, self._searches, settings.namespaces, settings.resync_seconds
        )
        self._election = Election(
            lease_client or client,
            settings.lease_namespace,
            settings.lease_name,
            settings.identity,
            settings.lease_seconds,
        )
        self._leading = False
        self._beat = time.monotonic()
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """The exit code: 0 only if we were asked to stop."""
        loop = asyncio.get_running_loop()
        self._catch_signals(loop)
        server = await serve(self._settings.host, self._settings.port, self._unhealthy, self._unready)
        try:
            if not await self._first(self._election.acquire()):
                return 0
            try:
                return await self._lead()
            finally:
                metrics.LEADER.set(0)
                await self._election.release()
        finally:
            await server.cleanup()

    def _catch_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)

    async def _first(self, work: Coroutine[Any, Any, None]) -> bool:
        """Whether it was done before we were asked to stop."""
        task, stop = asyncio.create_task(work), asyncio.create_task(self._stop.wait())
        done, pending = await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        for other in pending:
            other.cancel()
        if task in done:
            task.result()
        return task in done and not self._stop.is_set()

    async def _lead(self) -> int:
        self._leading = True
        self._mark()
        metrics.LEADER.set(1)
        settings, runtime = self._settings, self._runtime
        events, leases = Events(self._client, settings.identity), NodeLeases(self._client)
        self._cache.sees_nodes = await self._may_see_nodes()
        puller = CoordinatorPoller(
            changed=self._heard,
            distrusted=lambda key: reconciler.distrust(key),
            moved=lambda key: self._moved(key, reconciler),
        )
        reconciler = Reconciler(
            self._client,
            self._cache,
            self._queue,
            puller,
            leases,
            events,
            settings.default_image,
            settings.defaults,
            trust=settings.resync_seconds,
        )
        searches = SearchReconciler(self._client, self._cache, self._searches, self._queue, puller, events)
        tasks = {asyncio.create_task(self._election.hold(), name="lease"), asyncio.create_task(self._stop.wait())}
        try:
            await self._list_first(tasks)
            tasks.add(asyncio.create_task(self._watch(runtime), name="watches"))
            tasks |= {
                asyncio.create_task(forever(name, kind, work), name=name)
                for name, kind, work in [
                    ("resync", "resync", runtime.resync),
                    ("events", "events", events.send),
                    ("gauges", "gauges", lambda: runtime.measure(self._mark)),
                    *self._workers(settings.concurrency, "worker", self._queue, reconciler),
                    *self._workers(SEARCHERS, "searcher", self._searches, searches),
                ]
            }
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return self._verdict(done)
        finally:
            self._leading = False
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=5)
            await puller.close()

    def _workers(
        self, count: int, kind: str, queue: Queue[tuple[str, str]], reconciler: Reconciler | SearchReconciler
    ) -> list[tuple[str, str, Callable[[], Awaitable[None]]]]:
        def work() -> Awaitable[None]:
            return self._runtime.work(queue, reconciler, self._election.leads)

        return [(f"{kind} {number}", kind, work) for number in range(count)]

    async def _list_first(self, tasks: set[asyncio.Task[Any]]) -> None:
        """Nothing is decided before everything was listed once."""
        while not any(task.done() for task in tasks):
            try:
                await self._runtime.list_everything()
                return
            except ApiError as problem:
                logger.warning("listing failed and is tried again: %s", problem)
                await asyncio.sleep(1)

    async def _watch(self, runtime: Runtime) -> None:
        registry = watch.registry(runtime, self._cache.sees_nodes)
        started = asyncio.Event()
        task = asyncio.create_task(
            kopf.operator(
                registry=registry,
                settings=watch.configure(),
                memories=watch.NoMemories(),
                standalone=True,
                clusterwide=not self._settings.namespaces,
                namespaces=self._settings.namespaces,
                ready_flag=started,
                stop_flag=self._stop,
            ),
            name="kopf",
        )
        ready = asyncio.create_task(started.wait())
        try:
            await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
            # Kopf took over the signals on its way; they are ours, since stopping includes giving up the Lease.
            self._catch_signals(asyncio.get_running_loop())
            await task
        finally:
            ready.cancel()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _may_see_nodes(self) -> bool:
        """Without this right, draining at ``min`` waits for the user, and only silence tells of a lost node."""
        try:
            async for _ in self._client.list(NODE):
                break
        except Refused:
            logger.warning("nodes can't be read: cordoned nodes are not noticed")
            return False
        except ApiError as problem:
            logger.warning("nodes could not be read: %s", problem)
            return False
        return True

    def _verdict(self, done: set[asyncio.Task[Any]]) -> int:
        if self._stop.is_set():
            logger.info("asked to stop")
            return 0
        for task in done:
            problem = None if task.cancelled() else task.exception()
            logger.error("%s ended", task.get_name(), exc_info=problem)
        return 1

    def _heard(self, key: tuple[str, str]) -> None:
        """A coordinator said something new."""
        self._queue.add(key, 0.01)
        self._tell_searches(key, 0.01)

    def _moved(self, key: tuple[str, str], reconciler: Reconciler) -> None:
        """A coordinator said nothing new but numbers."""
        self._queue.add(key, reconciler.until_progress(key), aside=True)
        self._tell_searches(key, 1.0)

    def _tell_searches(self, key: tuple[str, str], after: float) -> None:
        namespace, name = key
        pool_of = namespace, name.removesuffix(POOL)
        if pool_of != key and self._cache.search(pool_of) is not None:
            self._searches.add(pool_of, after)
        search = self._cache.search_of(key)
        if search is not None:
            self._searches.add(search, after)

    def _mark(self) -> None:
        self._beat = time.monotonic()

    def _unhealthy(self) -> str | None:
        now = time.monotonic()
        if not self._leading:
            asked = now - self._election.attempted
            return None if asked < STUCK else f"the API server was last asked {asked:.0f} s ago"
        return None if now - self._beat < STUCK else f"the loop has not turned for {now - self._beat:.0f} s"

    def _unready(self) -> str | None:
        """Standing by is being ready: a Deployment's update must not wait for us to lead."""
        if self._leading and not self._runtime.listed:
            return "nothing has been listed yet"
        return None


async def run(settings: Settings) -> int:
    client = await Client.connect(naming.FIELD_MANAGER, _observe)
    lease_client = await Client.connect(naming.FIELD_MANAGER, _observe)
    try:
        return await Operator(settings, client, lease_client).run()
    finally:
        await client.close()
        await lease_client.close()


def _observe(verb: str, kind: str, code: int, seconds: float) -> None:
    metrics.REQUESTS.labels(verb, kind, str(code)).inc()
    metrics.REQUEST_SECONDS.labels(verb).observe(seconds)


def main() -> None:
    """Entry point of ``adaptrain-operator``."""
    settings = Settings.from_env()
    ALLOWED.update(settings.allow)
    logs.configure(settings)
    sys.setrecursionlimit(DEEPEST)
    sys.exit(asyncio.run(run(settings)))


if __name__ == "__main__":
    main()
