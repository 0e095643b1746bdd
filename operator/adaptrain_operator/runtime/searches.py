"""Reads what is known of a search, has the core decide, and carries the plan out."""

import contextlib
import logging
import time
from typing import Any

from adaptrain_api.search import POOL, ArchitectureSearchSpec
from adaptrain_api.search_status import ArchitectureSearchStatus
from adaptrain_api.training import dump
from pydantic import ValidationError

from adaptrain_operator.core import naming
from adaptrain_operator.core.conditions import first_problem
from adaptrain_operator.core.draft import Conditions
from adaptrain_operator.core.search import SearchPlan, decide_search
from adaptrain_operator.core.searched import Search, SearchSeen
from adaptrain_operator.kube.client import Client
from adaptrain_operator.kube.errors import Conflict, NotFound, Refused
from adaptrain_operator.kube.kinds import JOB, SEARCH
from adaptrain_operator.runtime.cache import Cache, Key
from adaptrain_operator.runtime.events import Events
from adaptrain_operator.runtime.queue import Queue
from adaptrain_operator.runtime.reconciler import Contacts
from adaptrain_operator.runtime.statuses import without_empty

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
        self._queue = queue
        self._jobs = jobs
        self._contacts = contacts
        self._events = events
        self._written: dict[Key, float] = {}
        """When a status was written last, seconds."""
        self._refused: dict[Key, dict[str, str]] = {}
        """Why trials' jobs were refused, by the search and the job's name. To forget it costs one more request each."""

    async def reconcile(self, key: Key) -> None:
        """Bring one search closer to what is wanted. Raises what a retry may cure."""
        raw = self._cache.search(key)
        if raw is None:
            self._written.pop(key, None)
            self._refused.pop(key, None)
            self._contacts.say((key[0], key[1] + POOL), None)
            return
        search = _read(raw)
        if isinstance(search, str):
            await self._tell(key, raw, "InvalidSpec", search)
            return
        plan = decide_search(search, self._observe(search), time.time())
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

    def _observe(self, search: Search) -> SearchSeen:
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
        trials = self._cache.trials((search.namespace, search.name))
        found = {name: self._cache.job((search.namespace, name)) for name in names} | trials
        heard = {name: self._contacts.contact((search.namespace, name)).progress for name in trials}
        return SearchSeen(
            jobs={name: job for name, job in found.items() if job is not None},
            progress=None if progress is None else progress.search,
            current=contact.fresh(time.time()),
            eta=None if progress is None else progress.eta_seconds,
            trials={name: told for name, told in heard.items() if told is not None},
            refused=refused,
        )

    async def _apply(self, key: Key, plan: SearchPlan) -> None:
        for job in plan.apply:
            try:
                made = await self._client.apply(JOB, job)
            except Refused as problem:
                if problem.quota or naming.TRIAL not in job["metadata"]["labels"]:
                    raise
                message = f"the API server refuses its job: {problem.message[:500]}: correct trial or space"
                self._refused.setdefault(key, {})[job["metadata"]["name"]] = message
                self._queue.add(key)
                continue
            # The watch will bring nothing new of it.
            for changed in self._cache.put(JOB, made):
                self._jobs.add(changed)

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
        status = ArchitectureSearchStatus.model_validate(raw["status"])
        conditions = Conditions(status.conditions, raw["metadata"].get("generation", 0), time.time())
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
        try:
            answer = await self._client.patch_status(SEARCH, key[0], key[1], {"status": change})
        except NotFound:
            self._cache.gone(SEARCH, key, raw["metadata"]["uid"])
            raise
        self._written[key] = time.monotonic()
        self._cache.put(SEARCH, answer)


def _read(raw: Object) -> Search | str:
    """A search, or why it can't be read."""
    meta = raw["metadata"]
    try:
        spec = ArchitectureSearchSpec.model_validate(raw["spec"])
    except ValidationError as problem:
        return f"spec.{first_problem(problem)}: correct it, or upgrade the operator"
    return Search(
        name=meta["name"],
        namespace=meta["namespace"],
        uid=meta["uid"],
        generation=meta.get("generation", 0),
        deleting="deletionTimestamp" in meta,
        spec=spec,
        status=ArchitectureSearchStatus.model_validate(raw["status"]),
    )
