"""Reads what is known of a search, has the core decide, and carries the plan out."""

import contextlib
import logging
import time
from typing import Any

from adaptrain_api.search.job import POOL, TRIAL, ArchitectureSearchSpec
from adaptrain_api.search.status import ArchitectureSearchStatus, OwnJob
from adaptrain_api.training.job import dump
from pydantic import ValidationError

from adaptrain_operator import clock
from adaptrain_operator.controllers.children import Maker, Taken
from adaptrain_operator.controllers.job import Contacts
from adaptrain_operator.controllers.status_writer import without_empty
from adaptrain_operator.core import naming
from adaptrain_operator.core.conditions import Conditions
from adaptrain_operator.core.search.observed import Search, SearchObserved, read_search_status
from adaptrain_operator.core.search.reconcile import SearchPlan, decide_search_anyhow
from adaptrain_operator.core.text import first_problem
from adaptrain_operator.kube.client import Client
from adaptrain_operator.kube.errors import AlreadyExists, Conflict, NotFound, Refused
from adaptrain_operator.kube.kinds import JOB, SEARCH
from adaptrain_operator.runtime.cache import Cache, Key
from adaptrain_operator.runtime.events import Events
from adaptrain_operator.runtime.workqueue import Queue

logger = logging.getLogger(__name__)

Object = dict[str, Any]

REFUSED_AGAIN = 30.0
FAST = frozenset({"trials", "progress", "best", "top", "paretoSize", "evaluationsPerMinute", "eta"})
"""Status fields that change with every trial."""
FAST_EVERY = 2.0


class SearchReconciler:
    """One per process; searches are worked on concurrently, each by one worker at a time."""

    def __init__(
        self,
        client: Client,
        cache: Cache,
        queue: Queue[Key],
        jobs: Queue[Key],
        contacts: Contacts,
        events: Events,
    ) -> None:
        self._client = client
        self._cache = cache
        self._maker = Maker(client, cache)
        self._queue = queue
        self._jobs = jobs
        self._contacts = contacts
        self._events = events
        self._written: dict[Key, float] = {}
        """When a status was written last, seconds."""
        self._made: dict[Key, dict[str, str]] = {}
        """Uids of jobs that were made and are not on record yet, by their name."""
        self._specs: dict[Key, tuple[tuple[str, int], ArchitectureSearchSpec | str]] = {}
        """Specs as they were read last, with the uid and generation; or why one can't be read."""
        self._refused: dict[Key, dict[str, str]] = {}
        """Why trials' jobs were refused, by the search and the job's name. To forget it costs one more request each."""

    async def reconcile(self, key: Key) -> None:
        """Bring one search closer to what is wanted. Raises what a retry may cure."""
        raw = self._cache.search(key)
        if raw is None:
            self._written.pop(key, None)
            self._refused.pop(key, None)
            self._made.pop(key, None)
            self._specs.pop(key, None)
            self._contacts.say((key[0], key[1] + POOL), None)
            return
        search = self._read(key, raw)
        if isinstance(search, str):
            await self._tell(key, raw, "InvalidSpec", search)
            return
        plan = decide_search_anyhow(search, self._observe(search), clock.now())
        try:
            await self._apply(key, plan)
        except Refused as problem:
            logger.warning("refused: %s", problem, extra={"job": "/".join(key)})
            message = f"the API server refuses its jobs: {problem.message[:500]}: correct the search"
            await self._tell(key, self._cache.search(key) or raw, "JobRefused", message)
            self._queue.add(key, REFUSED_AGAIN)
            return
        await self._delete(key, plan)
        self._contacts.say((search.namespace, search.pool), plan.reports)
        await self._write_status(key, raw, plan.status)
        for event in plan.events:
            self._events.tell(search, event)
        if plan.remove:
            await self._remove(key, search)
        elif plan.requeue_after is not None:
            self._queue.add(key, plan.requeue_after)

    def _read(self, key: Key, raw: Object) -> Search | str:
        """A search, or why it can't be read."""
        meta = raw["metadata"]
        known = self._specs.get(key)
        if known is None or known[0] != (meta["uid"], meta.get("generation", 0)):
            try:
                spec: ArchitectureSearchSpec | str = ArchitectureSearchSpec.model_validate(raw["spec"])
            except ValidationError as problem:
                spec = f"spec.{first_problem(problem)[:800]}: correct it, or upgrade the operator"
            known = self._specs[key] = (meta["uid"], meta.get("generation", 0)), spec
        if isinstance(known[1], str):
            return known[1]
        status = read_search_status(raw["status"])
        record = {one.name: one.uid for one in status.jobs}
        made = self._made.get(key, {})
        for name in [name for name, uid in made.items() if record.get(name) == uid]:
            del made[name]
        jobs = [OwnJob(name=name, uid=uid) for name, uid in {**record, **made}.items()]
        return Search(
            name=meta["name"],
            namespace=meta["namespace"],
            uid=meta["uid"],
            generation=meta.get("generation", 0),
            deleting="deletionTimestamp" in meta,
            spec=known[1],
            status=status.model_copy(update={"jobs": jobs}),
        )

    def _observe(self, search: Search) -> SearchObserved:
        contact = self._contacts.contact((search.namespace, search.pool))
        progress = contact.progress
        promote = search.spec.promote
        rival = promote.gate.better_than if promote is not None and promote.gate is not None else None
        names = [name for name in (search.pool, search.winner, rival) if name is not None]
        orders = progress.search.orders if progress is not None and progress.search is not None else []
        ordered = {search.trial(order.number) for order in orders}
        names += ordered
        refused = self._refused.get((search.namespace, search.name), {})
        for name in refused.keys() - ordered:
            del refused[name]
        # By an operator that kept no record, jobs say themselves that they are the search's.
        names += search.record or self._cache.named(search.namespace, search.name + TRIAL)
        found = {name: self._cache.job((search.namespace, name)) for name in names}
        trials = [name for name in search.record if search.number(name) is not None]
        heard = {name: self._contacts.contact((search.namespace, name)).progress for name in trials}
        return SearchObserved(
            jobs={name: job for name, job in found.items() if job is not None},
            progress=None if progress is None else progress.search,
            current=contact.fresh(clock.now()),
            eta=None if progress is None else progress.eta_seconds,
            trials={name: told for name, told in heard.items() if told is not None},
            refused=refused,
        )

    async def _apply(self, key: Key, plan: SearchPlan) -> None:
        record = {one.name: one.uid for one in plan.status.jobs}
        for job in plan.apply:
            name = job["metadata"]["name"]
            try:
                made = await self._create_or_apply(key, job, self._still_there((key[0], name), record.get(name)))
            except Taken as problem:
                # Its controller was changed by hand: it goes on without us.
                logger.warning("%s", problem, extra={"job": "/".join(key)})
                continue
            except Refused as problem:
                if problem.quota or naming.TRIAL not in job["metadata"]["labels"]:
                    raise
                message = f"the API server refuses its job: {problem.message[:500]}: correct trial or space"
                self._refused.setdefault(key, {})[name] = message
                self._queue.add(key)
                continue
            # The watch will bring nothing new of it.
            for changed in self._cache.put(JOB, made):
                self._jobs.add(changed)
            if record.get(name) != made["metadata"]["uid"]:
                record[name] = self._made.setdefault(key, {})[name] = made["metadata"]["uid"]
        jobs = [OwnJob(name=name, uid=uid) for name, uid in record.items()]
        plan.status = plan.status.model_copy(update={"jobs": jobs})

    def _still_there(self, job: Key, uid: str | None) -> str | None:
        """The uid, if there is a job of it."""
        there = self._cache.job(job)
        return uid if there is not None and there["metadata"]["uid"] == uid else None

    async def _create_or_apply(self, key: Key, job: Object, uid: str | None) -> Object:
        """Make a job, or change that of this uid and no other of its name."""
        if uid is not None:
            try:
                return await self._maker.mend(JOB, job, uid)
            except NotFound:
                self._cache.gone(JOB, (key[0], job["metadata"]["name"]), uid)
                raise
        try:
            return await self._client.create(JOB, key[0], job)
        except AlreadyExists:
            self._cache.put(JOB, await self._client.get(JOB, key[0], job["metadata"]["name"]))
            raise

    async def _delete(self, key: Key, plan: SearchPlan) -> None:
        for one in plan.delete:
            with contextlib.suppress(NotFound, Conflict):
                await self._client.delete(JOB, key[0], one.name, one.uid, background=True)
            for changed in self._cache.gone(JOB, (key[0], one.name), one.uid):
                self._jobs.add(changed)

    async def _remove(self, key: Key, search: Search) -> None:
        logger.info("its time to live is over", extra={"job": "/".join(key)})
        try:
            await self._client.delete(SEARCH, key[0], key[1], search.uid, background=True)
        except (NotFound, Conflict):
            self._cache.gone(SEARCH, key, search.uid)

    async def _tell(self, key: Key, raw: Object, reason: str, message: str) -> None:
        """The schema let it pass, and it can't be carried out: say so and leave what runs alone."""
        status = read_search_status(raw["status"])
        conditions = Conditions(status.conditions, raw["metadata"].get("generation", 0), clock.now())
        conditions.set("PodsReady", False, reason, message)
        update = {"conditions": conditions.list(), "phase": status.phase or "Pending"}
        await self._write_status(key, raw, status.model_copy(update=update))

    async def _write_status(self, key: Key, raw: Object, wanted: ArchitectureSearchStatus) -> None:
        """Patch what differs, and nothing if nothing does."""
        before, after = without_empty(raw["status"]), without_empty(dump(wanted))
        change = {name: after.get(name) for name in {*before, *after} if before.get(name) != after.get(name)}
        if not change:
            return
        left = self._written.get(key, 0.0) + FAST_EVERY - time.monotonic()
        if not change.keys() - FAST and left > 0:
            self._queue.add(key, left)
            return
        body = {"metadata": {"uid": raw["metadata"]["uid"]}, "status": change}
        try:
            answer = await self._client.patch_status(SEARCH, key[0], key[1], body)
        except NotFound:
            self._cache.gone(SEARCH, key, raw["metadata"]["uid"])
            raise
        self._written[key] = time.monotonic()
        self._cache.put(SEARCH, answer)
