"""Events for ``kubectl describe``. Never in the way of the work: sent by the side, and dropped when too many."""

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from datetime import UTC, datetime
from typing import Any, Protocol

from adaptrain_operator.core import naming
from adaptrain_operator.core.plan import Event
from adaptrain_operator.kube.client import Client
from adaptrain_operator.kube.errors import ApiError
from adaptrain_operator.kube.kinds import EVENT

logger = logging.getLogger(__name__)

AGAIN_AFTER = 600.0
REMEMBERED = 4096


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


class Events:
    """The same words about the same job or search are said once in ten minutes."""

    def __init__(self, client: Client, identity: str) -> None:
        self._client = client
        self._identity = identity
        self._said: OrderedDict[tuple[str, str, str], float] = OrderedDict()
        self._outbox: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue(maxsize=1000)

    def tell(self, job: Subject, event: Event) -> None:
        key = (job.uid, event.reason, event.message)
        now = time.time()
        if now - self._said.get(key, 0.0) < AGAIN_AFTER:
            return
        self._said[key] = now
        self._said.move_to_end(key)
        if len(self._said) > REMEMBERED:
            self._said.popitem(last=False)
        logger.info("%s: %s", event.reason, event.message, extra={"job": f"{job.namespace}/{job.name}"})
        try:
            self._outbox.put_nowait((job.namespace, self._body(job, event, now)))
        except asyncio.QueueFull:
            logger.warning("too many events: one was dropped")

    async def send(self) -> None:
        """Send what was told, for ever."""
        while True:
            namespace, body = await self._outbox.get()
            try:
                await self._client.create(EVENT, namespace, body)
            except ApiError as problem:
                logger.info("an event was lost: %s", problem)

    def _body(self, job: Subject, event: Event, now: float) -> dict[str, Any]:
        digest = hashlib.sha256(f"{job.uid} {event.reason} {event.message} {now}".encode()).hexdigest()[:16]
        stamp = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
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
            "message": event.message[:1024],
            "source": {"component": naming.FIELD_MANAGER},
            "reportingComponent": naming.FIELD_MANAGER,
            "reportingInstance": self._identity,
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "count": 1,
        }
