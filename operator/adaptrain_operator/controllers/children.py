"""Makes objects and keeps them as they should be, and never writes one that their owner's uid does not control."""

import logging
import secrets
import zlib
from base64 import b64decode
from dataclasses import dataclass, field
from typing import Any

from adaptrain_operator import clock
from adaptrain_operator.core.objects import owned, ownership
from adaptrain_operator.core.observed import Job
from adaptrain_operator.kube.client import Client
from adaptrain_operator.kube.errors import AlreadyExists, Conflict, NotFound, Refused
from adaptrain_operator.kube.kinds import APPLIED, CHILDREN, POD, SECRET, Kind
from adaptrain_operator.runtime.cache import Cache

logger = logging.getLogger(__name__)

Object = dict[str, Any]

TRUST = 120.0
"""Seconds that an object which isn't watched is taken to be as it was."""


class Taken(Exception):
    """An object of a needed name is not its owner's, or not for long.

    Attributes:
        reason: of the condition that tells it.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    @classmethod
    def together(cls, taken: "list[Taken]") -> "Taken":
        """All of them in one, those first that only a person can do something about."""
        first = sorted(taken, key=lambda one: one.reason != ownership.TAKEN)
        return cls(first[0].reason, "; ".join(map(str, first)))


@dataclass(slots=True)
class Made:
    """What is known of a job's objects that aren't watched. Losing it costs a few requests and nothing else."""

    checked: dict[tuple[str, str], tuple[str, float]] = field(default_factory=dict)
    """By kind and name, a digest of what was wanted and when it was found to be so."""
    changed_by_others: dict[tuple[str, str], tuple[str, str, float]] = field(default_factory=dict)
    """Watched objects that the API server keeps otherwise than we write them, since a webhook changes them: a digest of
    what was wanted, the version that it was made into, and when."""
    token: str | None = None
    token_checked: float = 0.0


class Maker:
    """Makes what jobs and searches own."""

    def __init__(self, client: Client, cache: Cache, trust: float = TRUST) -> None:
        """
        Args:
            trust: seconds that an object which isn't watched is taken to be as it was.
        """
        self._client = client
        self._cache = cache
        self.trust = trust

    def _trust_in(self, job: Job) -> float:
        """Not the same for all jobs, so that after a start they aren't looked at all at once again and again."""
        return self.trust * (0.75 + zlib.crc32(job.uid.encode()) % 1000 / 4000)

    async def ensure(self, kind: Kind, wanted: Object, known: bool) -> Object:
        """Make an object, or make one of ours right again.

        Args:
            wanted: with the reference to its controller.
            known: it has been there, so that looking comes before making.

        Raises:
            Taken: there is one of that name which is not its controller's.
            Conflict: it changed meanwhile.
        """
        namespace = wanted["metadata"]["namespace"]
        refused: Refused | None = None
        if not known:
            try:
                return await self._client.create(kind, namespace, wanted)
            except AlreadyExists:
                pass
            except Refused as problem:
                # A quota that is used up, for one, is looked at before the name is.
                refused = problem
        try:
            return await self.mend(kind, wanted)
        except NotFound:
            if refused is not None:
                raise refused from None
            return await self._client.create(kind, namespace, wanted)

    async def mend(self, kind: Kind, wanted: Object, uid: str | None = None) -> Object:
        """Make an object of ours right again.

        Args:
            uid: of the object; absent: that of its name, whatever its uid.

        Raises:
            NotFound: there is none of that name.
            Taken: there is one which is not its controller's.
            Conflict: it changed meanwhile, or its uid is another one.
        """
        namespace, name = wanted["metadata"]["namespace"], wanted["metadata"]["name"]
        found = await self._client.get(kind, namespace, name)
        if uid is not None and found["metadata"]["uid"] != uid:
            raise Conflict(409, "Conflict", f"{kind.name} {name} is another one than it was")
        if (why := ownership.verdict(wanted, found)) is not None:
            raise Taken(*why)
        if ownership.right(wanted, found):
            return found
        logger.info("%s %s/%s is made right again", kind.name, namespace, name)
        return await self._client.replace(kind, namespace, ownership.merged(wanted, found))

    async def child(self, made: Made, job: Job, wanted: Object) -> None:
        """Make one of a job's objects of a fixed name, unless it is known to be as wanted.

        Raises:
            Taken: there is one of that name which is not the job's.
        """
        kind, name = APPLIED[wanted["kind"]], (wanted["kind"], wanted["metadata"]["name"])
        digest = owned.digest(job, wanted)
        watched = kind in CHILDREN
        if not watched and name in made.checked:
            before, when = made.checked[name]
            if before == digest and clock.now() - when < self._trust_in(job):
                return
        there = self._cache.children((job.namespace, job.name), job.uid).get(name) if watched else None
        if there is not None and name in made.changed_by_others:
            before, version, when = made.changed_by_others[name]
            same = before == digest and version == there["metadata"]["resourceVersion"]
            if same and clock.now() - when < self.trust:
                return
        found = await self.ensure(kind, wanted, there is not None if watched else name in made.checked)
        if watched:
            self._cache.restore(kind, found)
            if not ownership.right(wanted, found):
                # Writing it again would make the same of it again.
                logger.warning("%s %s/%s is changed by another when it is written", kind.name, job.namespace, name[1])
                made.changed_by_others[name] = digest, found["metadata"]["resourceVersion"], clock.now()
        else:
            made.checked[name] = digest, clock.now()

    async def pod(self, job: Job, pod: Object) -> bool:
        """Make a pod; whether it was made now. A name that is taken costs a number, and nothing else."""
        namespace, name = job.namespace, pod["metadata"]["name"]
        try:
            found = await self._client.create(POD, namespace, pod)
        except AlreadyExists:
            # By an earlier life of ours, whose answer was lost, or another's.
            found = await self._client.get(POD, namespace, name)
            if not ownership.controlled(found, job.uid):
                logger.warning("there is a pod %s of another's: its number is left out", name)
                return False
            self._cache.put(POD, found)
            return False
        self._cache.put(POD, found)
        return True

    async def token(self, made: Made, job: Job) -> str:
        """The job's token: made once, read from then on, and made again as it was if its Secret is deleted.

        Raises:
            Taken: there is a Secret of its name which is not the job's.
        """
        now = clock.now()
        if made.token is not None and now - made.token_checked < self._trust_in(job):
            return made.token
        wanted = owned.token_secret(job, made.token or secrets.token_hex(32))
        found = await self.ensure(SECRET, wanted, known=made.token is not None)
        made.token, made.token_checked = b64decode(found["data"]["token"]).decode(), now
        return made.token
