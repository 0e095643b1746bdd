"""Events for ``kubectl describe``. Never in the way of the work: sent by the side, and dropped when too many."""

import asyncio
import hashlib
import logging
from collections import OrderedDict, deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from adaptrain_operator import clock, metrics
from adaptrain_operator.core import naming
from adaptrain_operator.core.plan import Event
from adaptrain_operator.kube.client import Client
from adaptrain_operator.kube.errors import ApiError, NotFound
from adaptrain_operator.kube.kinds import EVENT
from adaptrain_operator.runtime.budget import Bucket

logger = logging.getLogger(__name__)

AGAIN_AFTER = 60.0
"""Seconds until an event that came again is written again, with how often it has come."""
AT_ONCE, PER_SECOND = 20, 1 / 15
"""Events of one object: at once, and then in the long run."""
REMEMBERED, REMEMBERED_WORDS = 4096, 32
"""Objects, and events of each, of which it is known what was said."""
MESSAGE = 1024
"""Characters that the API server takes."""
WAITING = 200
"""Events of a namespace that wait to be sent."""


class Subject(Protocol):
    """What events are about."""

    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def namespace(self) -> str: ...
    @property
    def uid(self) -> str: ...


@dataclass(slots=True)
class _Word:
    """An event as the API server has it."""

    first: float
    written: float
    count: int = 1


class _Said:
    """What was said of an object, and what may be."""

    __slots__ = ("bucket", "words")

    def __init__(self) -> None:
        self.bucket = Bucket(PER_SECOND, AT_ONCE)
        self.words: OrderedDict[tuple[str, str], _Word] = OrderedDict()


class _Outbox:
    """What waits to be sent: one of each namespace in turn, and not more of one than there is room for."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[dict[str, Any]]] = OrderedDict()
        self._filled = asyncio.Event()

    def put(self, namespace: str, body: dict[str, Any]) -> bool:
        """Whether there was room."""
        waiting = self._waiting.setdefault(namespace, deque())
        if len(waiting) >= WAITING:
            return False
        waiting.append(body)
        self._filled.set()
        return True

    async def get(self) -> tuple[str, dict[str, Any]]:
        while not self._waiting:
            self._filled.clear()
            await self._filled.wait()
        namespace, waiting = self._waiting.popitem(last=False)
        body = waiting.popleft()
        if waiting:
            self._waiting[namespace] = waiting
        return namespace, body

    def qsize(self) -> int:
        return sum(map(len, self._waiting.values()))


class Events:
    """The same words about the same job or search are one event, which counts how often they came.

    An object that has much to say costs others nothing: each has a bucket of its own, and namespaces take turns.
    """

    def __init__(self, client: Client, identity: str) -> None:
        self._client = client
        self._identity = identity
        self._said: OrderedDict[str, _Said] = OrderedDict()
        self._outbox = _Outbox()

    def tell(self, job: Subject, event: Event) -> None:
        said = self._said.pop(job.uid, None) or _Said()
        self._said[job.uid] = said
        if len(self._said) > REMEMBERED:
            self._said.popitem(last=False)
        key, now = (event.reason, event.message[:MESSAGE]), clock.now()
        word = said.words.get(key)
        if word is not None:
            word.count += 1
            if now - word.written < AGAIN_AFTER:
                return
        where = {"job": f"{job.namespace}/{job.name}"}
        if not said.bucket.take():
            metrics.EVENTS_DROPPED.inc()
            logger.debug("dropped, since it has had many: %s: %s", event.reason, event.message, extra=where)
            return
        word = said.words.setdefault(key, _Word(now, now))
        word.written = now
        said.words.move_to_end(key)
        if len(said.words) > REMEMBERED_WORDS:
            said.words.popitem(last=False)
        logger.info("%s: %s", event.reason, event.message, extra=where)
        if not self._outbox.put(job.namespace, self._body(job, event, word)):
            metrics.EVENTS_DROPPED.inc()

    async def send(self) -> None:
        """Send what was told, for ever."""
        while True:
            namespace, body = await self._outbox.get()
            try:
                if body["count"] > 1:
                    try:
                        await self._client.replace(EVENT, namespace, body)
                        continue
                    except NotFound:  # the API server keeps events for an hour
                        pass
                await self._client.create(EVENT, namespace, body)
            except ApiError as problem:
                logger.info("an event was lost: %s", problem)

    def _body(self, job: Subject, event: Event, word: _Word) -> dict[str, Any]:
        said = f"{job.uid} {event.reason} {event.message} {word.first}"
        digest = hashlib.sha256(said.encode()).hexdigest()[:16]
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{job.name}.{digest}", "namespace": job.namespace},
            "involvedObject": {
                "apiVersion": naming.API_VERSION,
                "kind": job.kind,
                "name": job.name,
                "namespace": job.namespace,
                "uid": job.uid,
            },
            "type": event.type,
            "reason": event.reason,
            "message": event.message[:MESSAGE],
            "source": {"component": naming.FIELD_MANAGER},
            "reportingComponent": naming.FIELD_MANAGER,
            "reportingInstance": self._identity,
            "firstTimestamp": _stamp(word.first),
            "lastTimestamp": _stamp(word.written),
            "count": word.count,
        }


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
