"""Pulls progress from coordinators, and tells those of searches how their trials' jobs go.

Nobody reports to the operator: what can't be asked with the token isn't believed.

A coordinator is asked by its pod's address, not through its Service: that neither needs DNS nor can reach an old one.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import aiohttp
from adaptrain_api.progress import HTTP_PORT, Progress, TrialReports
from pydantic import ValidationError

from adaptrain_operator import metrics
from adaptrain_operator.core.observed import Contact

logger = logging.getLogger(__name__)

Key = tuple[str, str]

INTERVAL = 1.0
UNREACHED_INTERVAL = 10.0
"""A coordinator that never answered is asked ever more seldom: it may be on a node that we can't reach."""
LARGEST = 4 * 1024 * 1024


@dataclass(slots=True)
class _Target:
    number: int
    address: str
    node: str | None
    token: str
    task: asyncio.Task[None] | None = None
    contact: Contact = field(default_factory=Contact)
    failures: int = 0
    failing_since: float = 0.0


class Puller:
    """Keeps one contact per job. Bounded in how many it asks at once."""

    def __init__(self, changed: Callable[[Key], None], distrusted: Callable[[Key], None], limit: int = 32) -> None:
        self._changed = changed
        self._distrusted = distrusted
        self._targets: dict[Key, _Target] = {}
        self._said: dict[Key, TrialReports] = {}
        self._slots = asyncio.Semaphore(limit)
        self._session: aiohttp.ClientSession | None = None

    def ask(self, key: Key, number: int, address: str, node: str | None, token: str) -> None:
        """Pull from this coordinator from now on. What an earlier one said last is kept until this one answers."""
        known = self._targets.get(key)
        if known is not None and (known.number, known.address, known.token) == (number, address, token):
            return
        target = _Target(number, address, node, token)
        if known is not None:
            target.contact = Contact(number=number, progress=known.contact.progress, asked=time.time())
            if known.number == number:
                # Only the token is another one: who it is hasn't changed.
                target.contact = known.contact
        else:
            target.contact = Contact(number=number, asked=time.time())
        self.stop(key)
        self._targets[key] = target
        target.task = asyncio.create_task(self._follow(key, target), name=f"progress of {key[0]}/{key[1]}")

    def stop(self, key: Key) -> None:
        """Ask no more."""
        target = self._targets.pop(key, None)
        if target is not None and target.task is not None:
            target.task.cancel()

    def say(self, key: Key, trials: TrialReports | None) -> None:
        """Tell this with each pull from now on; None: nothing. The answer is the progress after that."""
        if trials is None:
            self._said.pop(key, None)
        else:
            self._said[key] = trials

    def contact(self, key: Key) -> Contact:
        """What is known now."""
        target = self._targets.get(key)
        if target is None:
            return Contact()
        return replace(target.contact, cut_off=True) if self._cut_off() else target.contact

    async def close(self) -> None:
        for key in list(self._targets):
            self.stop(key)
        if self._session is not None:
            await self._session.close()

    def _cut_off(self) -> bool:
        """All coordinators on different nodes went silent at once: more likely it is our own network."""
        heard = [target for target in self._targets.values() if target.contact.answered is not None]
        return (
            len(heard) >= 2
            and len({target.node for target in heard}) >= 2
            and all(target.contact.lost_since is not None for target in heard)
        )

    async def _follow(self, key: Key, target: _Target) -> None:
        interval = INTERVAL
        while True:
            began = time.time()
            async with self._slots:
                progress = await self._pull(key, target)
            if progress is not None:
                interval = INTERVAL
                self._heard(key, target, progress)
            else:
                self._missed(key, target, began)
                if target.contact.answered is None:
                    interval = min(UNREACHED_INTERVAL, interval * 1.6)
            await asyncio.sleep(max(0.1, interval - (time.time() - began)))

    def _heard(self, key: Key, target: _Target, progress: Progress) -> None:
        before = target.contact
        target.failures = 0
        target.contact = Contact(target.number, progress, before.asked, answered=time.time())
        if before.progress != progress or before.lost_since is not None or before.answered is None:
            self._changed(key)

    def _missed(self, key: Key, target: _Target, began: float) -> None:
        target.failures += 1
        if target.failures == 1:
            target.failing_since = began
        # One failure may be a hiccup of ours; two in a row are a state.
        if target.failures == 2 and target.contact.answered is not None:
            target.contact = replace(target.contact, lost_since=target.failing_since)
            self._changed(key)

    async def _pull(self, key: Key, target: _Target) -> Progress | None:
        if self._session is None:
            limit = aiohttp.ClientTimeout(total=3, sock_connect=1.5)
            self._session = aiohttp.ClientSession(
                timeout=limit, connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=5)
            )
        host = f"[{target.address}]" if ":" in target.address else target.address
        headers = {"Authorization": f"Bearer {target.token}"}
        trials = self._said.get(key)
        way, path, said = ("GET", "progress", None) if trials is None else ("POST", "trials", trials.model_dump_json())
        try:
            async with self._session.request(
                way, f"http://{host}:{HTTP_PORT}/{path}", headers=headers, data=said
            ) as response:
                if response.status in (401, 403):
                    metrics.PULLS.labels("refused").inc()
                    self._distrusted(key)
                    return None
                response.raise_for_status()
                body = await response.content.read(LARGEST)
                while not response.content.at_eof() and len(body) < LARGEST:
                    body += await response.content.read(LARGEST - len(body))
            progress: Progress = Progress.model_validate_json(body)
        except (aiohttp.ClientError, TimeoutError, OSError):
            metrics.PULLS.labels("unreachable").inc()
            return None
        except (ValidationError, ValueError) as problem:
            metrics.PULLS.labels("invalid").inc()
            logger.warning("the coordinator's progress can't be read: %s", problem, extra={"job": "/".join(key)})
            return None
        if progress.number != target.number:
            metrics.PULLS.labels("other").inc()
            return None
        metrics.PULLS.labels("ok").inc()
        return progress
