"""Everything that runs while this process leads: workers of the queue, listings, and the entrance for watch events."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from adaptrain_operator import metrics
from adaptrain_operator.controllers.job import Reconciler
from adaptrain_operator.controllers.search import SearchReconciler
from adaptrain_operator.core import naming
from adaptrain_operator.kube.client import Client
from adaptrain_operator.kube.errors import ApiError, Conflict, NotFound
from adaptrain_operator.kube.kinds import CHILDREN, JOB, NODE, POD, SEARCH, Kind
from adaptrain_operator.runtime.cache import Cache, Key
from adaptrain_operator.runtime.workqueue import Queue

logger = logging.getLogger(__name__)

Object = dict[str, Any]

COALESCE = 0.1
"""Seconds that an event waits for others of its job: a pod's changes come in bursts."""
SETTLE = 2.0
"""Seconds of quiet after a watch has listed anew, before we list too."""


class Runtime:
    """Level-triggered: an event only says which job to look at."""

    def __init__(
        self,
        client: Client,
        cache: Cache,
        queue: Queue[Key],
        searches: Queue[Key],
        namespaces: tuple[str, ...],
        resync_seconds: float,
    ) -> None:
        self._client = client
        self._cache = cache
        self._queue = queue
        self._searches = searches
        self._namespaces = namespaces
        self._resync_seconds = resync_seconds
        self._relisted = asyncio.Event()
        self._relist_at = 0.0
        self.listed = False

    async def saw(self, kind: Kind, event: Object) -> None:
        """Take in what a watch said."""
        obj = event["object"]
        if event["type"] is None:
            # The watch began anew, and what was deleted meanwhile it will never tell: only a listing of ours does.
            self._relist_at = time.monotonic() + SETTLE
            self._relisted.set()
        deleted = event["type"] == "DELETED"
        for job in self._cache.drop(kind, obj) if deleted else self._put(kind, obj):
            self._queue.add(job, COALESCE)
        if (search := _search(kind, obj)) is not None:
            self._searches.add(search, COALESCE)

    async def list_everything(self) -> None:
        """Make the cache equal to what is. Nothing is decided before this has succeeded once."""
        for kind in (JOB, SEARCH, POD, *CHILDREN):
            await self._list(kind, None if kind in (JOB, SEARCH) else naming.OWNED_SELECTOR)
        if self._cache.sees_nodes:
            await self._list(NODE, None)
        first, self.listed = not self.listed, True
        if first:
            for key in self._cache.jobs():
                self._queue.add(key)
        for key in self._cache.searches():
            self._searches.add(key, 0.0 if first else COALESCE)
        metrics.RESYNCS.labels("ok").inc()

    async def _list(self, kind: Kind, selector: str | None) -> None:
        where: tuple[str | None, ...] = self._namespaces if self._namespaces and kind.namespaced else (None,)
        for namespace in where:
            seen: set[Key] = set()
            version = 0
            async for page, listed in self._client.pages(kind, namespace, selector):
                version = listed
                for obj in page:
                    meta = obj["metadata"]
                    seen.add((meta.get("namespace") or "", meta["name"]))
                    for job in self._cache.put(kind, obj):
                        self._queue.add(job, COALESCE)
            for job in self._cache.keep_only(kind, seen, version, (namespace,) if namespace else ()):
                self._queue.add(job)

    def _put(self, kind: Kind, obj: Object) -> set[Key]:
        """Take in a state. One object that can't be read must not keep the others from being seen."""
        try:
            return self._cache.put(kind, obj)
        except Exception:
            metrics.UNREADABLE.labels(kind.name).inc()
            meta = obj.get("metadata") or {}
            logger.exception("a %s can't be read: %s/%s", kind.name, meta.get("namespace"), meta.get("name"))
            return set()

    async def resync(self) -> None:
        """List again from time to time, and soon after a watch had to begin anew."""
        while True:
            try:
                async with asyncio.timeout(self._resync_seconds):
                    await self._relisted.wait()
                await self._settled()
            except TimeoutError:
                pass
            self._relisted.clear()
            try:
                await self.list_everything()
            except ApiError as problem:
                metrics.RESYNCS.labels("error").inc()
                logger.warning("listing failed and is tried again: %s", problem)
                self._relist_at = time.monotonic() + SETTLE
                self._relisted.set()

    async def _settled(self) -> None:
        """Wait until no watch has listed for a while."""
        while True:
            left = self._relist_at - time.monotonic()
            if left <= 0:
                return
            await asyncio.sleep(left)

    async def work(
        self, queue: Queue[Key], reconciler: Reconciler | SearchReconciler, leads: Callable[[], bool] = lambda: True
    ) -> None:
        """One worker of a queue, as long as this process leads; for ever, if it goes on to."""
        while True:
            key = await queue.get()
            began = time.monotonic()
            try:
                if not leads():
                    # A process that was stopped for a while finds out here, before its election does.
                    queue.add(key, 1.0)
                    continue
                async with asyncio.timeout(120):
                    await reconciler.reconcile(key)
            except (Conflict, NotFound):
                # Somebody was faster: the cache has been told, look again.
                metrics.RECONCILES.labels("conflict").inc()
                queue.retry(key)
            except (ApiError, TimeoutError) as problem:
                metrics.RECONCILES.labels("error").inc()
                delay = queue.retry(key)
                logger.warning("tried again in %.1f s: %s", delay, problem, extra={"job": "/".join(key)})
            except Exception:
                # One job's trouble must not stop the others'.
                metrics.RECONCILES.labels("error").inc()
                queue.retry(key)
                logger.exception("a decision failed", extra={"job": "/".join(key)})
            else:
                metrics.RECONCILES.labels("ok").inc()
                queue.succeeded(key)
            finally:
                queue.done(key)
                metrics.RECONCILE_SECONDS.observe(time.monotonic() - began)

    async def measure(self, beat: Callable[[], None]) -> None:
        """Keep the gauges."""
        while True:
            metrics.QUEUE_DEPTH.set(self._queue.depth())
            metrics.QUEUE_WAIT.set(self._queue.overdue())
            for phase, count in self._cache.phases().items():
                metrics.JOBS.labels(phase).set(count)
            metrics.STANDING.look(self._cache.unsuccessful())
            beat()
            await asyncio.sleep(2)


def _search(kind: Kind, obj: Object) -> Key | None:
    """The search that an object is or belongs to."""
    meta = obj["metadata"]
    name = meta["name"] if kind is SEARCH else (meta.get("labels") or {}).get(naming.SEARCH_NAME)
    return None if name is None or kind not in (SEARCH, JOB) else (meta.get("namespace") or "", name)
