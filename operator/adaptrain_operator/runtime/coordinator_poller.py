"""Pulls progress from coordinators, and tells those of searches how their trials' jobs go.

Nobody reports to the operator: what can't be asked with the token isn't believed. What is believed is bounded where it
is parsed (``adaptrain_api.bounds``): a coordinator runs a user's image, and may say anything, anyhow, for as long as it
likes. So no redirect is followed, nothing is decompressed, an answer's size and time are bounded, and a namespace's
coordinators wait for each other only. That both ends know the job's token is proved, and the token is never sent
(``adaptrain_api.contracts.proof``).

A coordinator is asked by its pod's address, not through its Service: that neither needs DNS nor can reach an old one.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import aiohttp
from adaptrain_api.contracts.coordinator_api import HTTP_PORT, Progress, TrialReports
from adaptrain_api.contracts.proof import Caller
from pydantic import ValidationError

from adaptrain_operator import clock, metrics
from adaptrain_operator.core.observed import Contact
from adaptrain_operator.runtime.budget import Buckets
from adaptrain_operator.runtime.slots import Slots
from adaptrain_operator.tasks import forever

logger = logging.getLogger(__name__)

Key = tuple[str, str]

INTERVAL = 1.0
UNREACHED_INTERVAL = 10.0
"""A coordinator that never answered is asked ever more seldom: it may be on a node that we can't reach."""
PULLS_PER_SECOND = 240.0
"""Of all coordinators whose jobs are settled; those of others are asked every ``INTERVAL``."""
LARGEST, LARGEST_OF_TRIALS = 1024 * 1024, 4 * 1024 * 1024
"""Bytes of an answer; of a search's whose trials are jobs, which orders them."""
BYTES_PER_SECOND, BYTES_AT_ONCE = 1024 * 1024, 16 * 1024 * 1024
"""Of a namespace's coordinators together: one that says much is asked less often."""
NUMBERS = frozenset(
    {
        "step",
        "data_epoch",
        "loss",
        "learning_rate",
        "batch_size",
        "samples_per_second",
        "step_seconds",
        "metrics",
        "best",
        "checkpoint_step",
        "checkpoint_time",
        "eta_seconds",
        "goodput",
        "skipped_steps",
        "phases",
    }
)
"""What changes all the time while a job trains, and what nothing but a status depends on."""


@dataclass(slots=True)
class _Target:
    number: int
    address: str
    node: str | None
    token: str
    settled: bool = False
    task: asyncio.Task[None] | None = None
    contact: Contact = field(default_factory=Contact)
    failures: int = 0
    failing_since: float = 0.0
    interval: float = INTERVAL
    owed: float = 0.0
    """Seconds that its namespace's coordinators have to be silent for what this one said last."""
    caller: Caller = field(init=False)

    def __post_init__(self) -> None:
        self.caller = Caller(self.token)


class CoordinatorPoller:
    """Keeps one contact per job. Bounded in how many it asks at once, of each namespace and of all."""

    def __init__(
        self,
        changed: Callable[[Key], None],
        distrusted: Callable[[Key], None],
        moved: Callable[[Key], None] | None = None,
    ) -> None:
        """
        Args:
            changed: called when there may be something to decide.
            distrusted: called when a coordinator refused the token.
            moved: called when only numbers have changed; absent: as ``changed``.
        """
        self._changed = changed
        self._distrusted = distrusted
        self._moved = changed if moved is None else moved
        self._targets: dict[Key, _Target] = {}
        self._said: dict[Key, TrialReports] = {}
        self._slots = Slots()
        self._bytes: Buckets[str] = Buckets(BYTES_PER_SECOND, BYTES_AT_ONCE)
        self._session: aiohttp.ClientSession | None = None

    def ask(self, key: Key, number: int, address: str, node: str | None, token: str, settled: bool = False) -> None:
        """Pull from this coordinator from now on. What an earlier one said last is kept until this one answers.

        Args:
            settled: the job is as it is wanted, so that a large fleet's coordinators may be asked less often.
        """
        known = self._targets.get(key)
        if known is not None and (known.number, known.address, known.token) == (number, address, token):
            known.settled = settled
            return
        target = _Target(number, address, node, token, settled)
        if known is not None:
            target.contact = Contact(number=number, progress=known.contact.progress, asked=clock.now())
            if known.number == number:
                # Only the token is another one: who it is hasn't changed.
                target.contact = known.contact
                target.failures, target.failing_since = known.failures, known.failing_since
        else:
            target.contact = Contact(number=number, asked=clock.now())
        self.stop(key)
        self._targets[key] = target
        name = f"progress of {key[0]}/{key[1]}"
        target.task = asyncio.create_task(forever(name, "progress", lambda: self._follow(key, target)), name=name)

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
        lost = target.contact.lost_since is not None
        return replace(target.contact, cut_off=True) if lost and self._cut_off() else target.contact

    @property
    def asked(self) -> int:
        """How many coordinators are asked."""
        return len(self._targets)

    async def close(self) -> None:
        for key in list(self._targets):
            self.stop(key)
        if self._session is not None:
            await self._session.close()

    def _cut_off(self) -> bool:
        """All coordinators on different nodes went silent at once: more likely it is our own network."""
        nodes, count = set(), 0
        for target in self._targets.values():
            if target.contact.answered is None:
                continue
            if target.contact.lost_since is None:
                return False
            count += 1
            nodes.add(target.node)
        return count >= 2 and len(nodes) >= 2

    async def _follow(self, key: Key, target: _Target) -> None:
        loop = asyncio.get_running_loop()
        while True:
            async with self._slots.of(key[0], suspected=target.failures > 0):
                began = clock.now()
                progress = await self._pull(key, target)
            if progress is not None:
                self._heard(key, target, progress)
            else:
                self._missed(key, target, began)
            due = loop.time() + target.interval - (clock.now() - began)
            while (left := due - loop.time()) > 0:
                await asyncio.sleep(min(left, INTERVAL))
                if not target.settled and target.contact.answered is not None and not target.owed:
                    break  # something has begun since

    def _interval(self, target: _Target) -> float:
        """Seconds until the coordinator, which has answered or was missed just now, is asked again."""
        if target.failures and target.contact.answered is None:
            return min(UNREACHED_INTERVAL, max(INTERVAL, target.interval * 1.6))
        if target.failures or not target.settled:
            return max(INTERVAL, target.owed)
        return max(INTERVAL, target.owed, len(self._targets) / PULLS_PER_SECOND)

    def _heard(self, key: Key, target: _Target, progress: Progress) -> None:
        before = target.contact
        target.failures = 0
        target.interval = self._interval(target)
        target.contact = Contact(target.number, progress, before.asked, answered=clock.now(), interval=target.interval)
        if before.lost_since is not None or before.answered is None or before.progress is None:
            self._changed(key)
        elif before.progress != progress:
            rest = {name: getattr(progress, name) for name in NUMBERS}
            (self._moved if before.progress.model_copy(update=rest) == progress else self._changed)(key)

    def _missed(self, key: Key, target: _Target, began: float) -> None:
        target.failures += 1
        target.interval = self._interval(target)
        if target.failures == 1:
            target.failing_since = began
        # One failure may be a hiccup of ours; two in a row are a state.
        if target.failures == 2 and target.contact.answered is not None:
            target.contact = replace(target.contact, lost_since=target.failing_since)
            self._changed(key)

    async def _pull(self, key: Key, target: _Target) -> Progress | None:
        target.owed = 0.0
        try:
            status, body, proved = await self._request(key, target)
            target.owed = self._bytes.of(key[0]).owe(len(body))
            if status in (401, 403):
                metrics.PULLS.labels("refused").inc()
                if target.failures & (target.failures + 1) == 0:  # ever more seldom: reading it costs a request
                    self._distrusted(key)
                return None
            if not proved:
                raise ValueError("what answers at its address does not prove that it knows the job's token")
            if status != 200:
                raise ValueError(f"it answers with status {status}")
            progress: Progress = Progress.model_validate_json(body)
        except (aiohttp.ClientError, TimeoutError, OSError):
            metrics.PULLS.labels("unreachable").inc()
            return None
        except (ValidationError, ValueError) as problem:
            metrics.PULLS.labels("invalid").inc()
            if target.failures == 0:
                words = str(problem)[:500]
                logger.warning("the coordinator's progress can't be read: %s", words, extra={"job": "/".join(key)})
            return None
        if progress.number != target.number:
            metrics.PULLS.labels("other").inc()
            return None
        metrics.PULLS.labels("ok").inc()
        return progress

    async def _request(self, key: Key, target: _Target) -> tuple[int, bytes, bool]:
        """The status and the body of an answer, and whether both are proved to be of the job's coordinator.

        Raises:
            ValueError: the body is too large or compressed.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=3, sock_connect=1.5),
                # A thousand connections that wait for the next question would hold 10 MB.
                connector=aiohttp.TCPConnector(limit=0, force_close=True),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        trials = self._said.get(key)
        way, path, said = ("GET", "/progress", b"")
        if trials is not None:
            way, path, said = "POST", "/trials", trials.model_dump_json().encode()
        largest = LARGEST if trials is None else LARGEST_OF_TRIALS
        url = f"http://{bracketed(target.address)}:{HTTP_PORT}{path}"
        for again in (True, False):  # at first it gives a nonce
            headers = {"Authorization": target.caller.authorization(way, path, said), "Accept-Encoding": "identity"}
            async with self._session.request(
                way, url, headers=headers, data=said or None, allow_redirects=False
            ) as response:
                if response.headers.get("Content-Encoding", "identity") != "identity":
                    raise ValueError("its answer is compressed")
                body = bytearray()
                async for part in response.content.iter_any():
                    body += part
                    if len(body) > largest:
                        raise ValueError(f"its answer has more than {largest} bytes")
                given, proof = (response.headers.get(name, "") for name in ("WWW-Authenticate", "Authentication-Info"))
            if not (again and response.status == 401 and target.caller.challenged(given)):
                break
        return response.status, bytes(body), target.caller.believes(proof, response.status, bytes(body))


def bracketed(address: str) -> str:
    """An address as URLs have it."""
    return f"[{address}]" if ":" in address else address
