"""Leases of the nodes that are suspected of something.

They are read one by one: watching all would be an event per node every ten seconds, for the few that are ever in doubt.
"""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import replace

from adaptrain_operator import clock
from adaptrain_operator.core.containers import timestamp
from adaptrain_operator.core.observed import Lease
from adaptrain_operator.kube.client import Client
from adaptrain_operator.kube.errors import ApiError, NotFound, Refused
from adaptrain_operator.kube.kinds import LEASE

logger = logging.getLogger(__name__)

NAMESPACE = "kube-node-lease"
EVERY = 1.0
FORGET = 120.0
LOOKED_AWAY = 10.0
REFUSED_FOR = 60.0


class NodeLeases:
    """What was seen of them, and since when it is the same."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._seen: dict[str, Lease] = {}
        self._refused_until = 0.0

    def seen(self) -> dict[str, Lease]:
        return self._seen

    async def refresh(self, nodes: Iterable[str]) -> None:
        """Read the Leases of these nodes, each at most once a second."""
        now = clock.now()
        for node in [node for node, lease in self._seen.items() if now - lease.last_seen > FORGET]:
            del self._seen[node]
        if now >= self._refused_until:
            await asyncio.gather(*(self._read(node, now) for node in nodes))

    async def _read(self, node: str, now: float) -> None:
        known = self._seen.get(node)
        if known is not None and now - known.last_seen < EVERY:
            return
        try:
            lease = await self._client.get(LEASE, NAMESPACE, node)
        except NotFound:
            return
        except Refused as problem:
            # Not for ever: an API server that has just started refuses all for a moment.
            self._refused_until = now + REFUSED_FOR
            logger.warning("Leases of nodes can't be read, so lost nodes are noticed late: %s", problem)
            return
        except ApiError as problem:
            logger.info("the Lease of node %s could not be read: %s", node, problem)
            return
        self._seen[node] = seen_again(known, timestamp((lease.get("spec") or {}).get("renewTime")) or 0.0, clock.now())


def seen_again(known: Lease | None, renewed: float, now: float) -> Lease:
    """What is known of a Lease after another look at it."""
    # A gap in our own looking starts the count anew: staleness is what was watched, not what was found.
    if known is None or now - known.last_seen >= LOOKED_AWAY:
        return Lease(renewed, now, now)
    if known.renewed == renewed:
        return replace(known, last_seen=now)
    return Lease(renewed, now, now, watched=True)
