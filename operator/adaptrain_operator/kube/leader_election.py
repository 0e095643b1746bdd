"""Leader election by a Lease.

Kopf's peering is advisory: two peers may act at the same time for a while. A Lease is taken with the version that was
read, so only one candidate gets it. Clocks are never compared: a holder counts as gone when its record has not changed
for the Lease's duration while *we* watched. A holder that can't renew gives up well before that, and since all of its
writes either carry a version or are idempotent, even one that was frozen meanwhile does no harm when it wakes.
"""

import asyncio
import logging
import time
from datetime import UTC, datetime
from typing import Any

from adaptrain_operator.kube.client import Client
from adaptrain_operator.kube.errors import ApiError, NotFound
from adaptrain_operator.kube.kinds import LEASE

logger = logging.getLogger(__name__)

Object = dict[str, Any]


class Election:
    """One candidate."""

    def __init__(self, client: Client, namespace: str, name: str, identity: str, seconds: float) -> None:
        self._client = client
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._seconds = seconds
        self._lease: Object | None = None
        self._seen: tuple[str, float] = ("", 0.0)
        self._until = 0.0
        """When this process stops to lead unless it renews before; 0: it doesn't lead."""
        self.attempted = time.monotonic()
        """When the API server was last asked: a candidate that stopped asking is stuck."""

    @property
    def retry(self) -> float:
        return self._seconds / 6

    async def acquire(self) -> None:
        """Wait until we lead."""
        while True:
            if await self._try("acquired"):
                break
            await asyncio.sleep(self.retry)
        logger.info("leading as %s", self._identity)

    async def hold(self) -> None:
        """Renew for as long as possible; returns when the lead is lost, well before another may take it."""
        while (left := self._until - time.monotonic()) > 0:
            await asyncio.sleep(min(self.retry, left))
            if not await self._try("renewed") and self._taken():
                break
        self._until = 0.0
        logger.error("the lead was lost")

    def leads(self) -> bool:
        """Whether nobody else can lead yet, even if this process was stopped for a while and doesn't know it."""
        return time.monotonic() < self._until

    async def release(self) -> None:
        """Let the next candidate lead at once."""
        self._until = 0.0
        if self._lease is None or self._holder() != self._identity:
            return
        self._lease["spec"]["holderIdentity"] = ""
        try:
            await self._client.replace(LEASE, self._namespace, self._lease, timeout=3)
        except ApiError as problem:
            logger.warning("the lead could not be released: %s", problem)

    def _holder(self) -> str:
        return "" if self._lease is None else self._lease["spec"].get("holderIdentity") or ""

    def _taken(self) -> bool:
        return self._holder() not in ("", self._identity)

    async def _try(self, what: str) -> bool:
        began = self.attempted = time.monotonic()
        limit = max(1.0, self._seconds / 3)
        if self._until:
            limit = min(limit, max(0.0, self._until - began))
        try:
            async with asyncio.timeout(limit):
                held = await self._attempt()
        except (ApiError, TimeoutError) as problem:
            logger.warning("the lease was not %s: %s", what, str(problem) or f"no answer within {limit:.1f} s")
            return False
        if held:
            # From before the request: the API server may have written it long before it answered.
            self._until = began + self._seconds * 2 / 3
        return held

    async def _attempt(self) -> bool:
        try:
            self._lease = await self._client.get(LEASE, self._namespace, self._name)
        except NotFound:
            self._lease = await self._client.create(LEASE, self._namespace, self._record(None))
            return True
        version = self._lease["metadata"]["resourceVersion"]
        if version != self._seen[0]:
            self._seen = (version, time.monotonic())
        duration = float(self._lease["spec"].get("leaseDurationSeconds") or self._seconds)
        if self._taken() and time.monotonic() - self._seen[1] < duration:
            return False
        self._lease = await self._client.replace(LEASE, self._namespace, self._record(self._lease))
        return True

    def _record(self, old: Object | None) -> Object:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        spec = dict(old["spec"]) if old is not None else {}
        if spec.get("holderIdentity") != self._identity:
            spec["acquireTime"] = now
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + (old is not None)
        spec |= {"holderIdentity": self._identity, "leaseDurationSeconds": max(1, int(self._seconds)), "renewTime": now}
        if old is not None:
            return {**old, "spec": spec}
        meta = {"name": self._name, "namespace": self._namespace}
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": spec}
