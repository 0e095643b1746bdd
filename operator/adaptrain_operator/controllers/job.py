"""Reads what is known of a job, has the core decide, and carries the plan out."""

import asyncio
import contextlib
import json
import logging
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from adaptrain_api.contracts.coordinator_api import TrialReports
from adaptrain_api.objects import OPERATOR
from adaptrain_api.search.job import ArchitectureSearch
from adaptrain_api.training.job import TrainingJobSpec, dump
from adaptrain_api.training.status import TrainingJobStatus
from pydantic import ValidationError

from adaptrain_operator import clock, metrics
from adaptrain_operator.controllers.children import TRUST, Made, Maker, Taken
from adaptrain_operator.controllers.status_writer import (
    RESERVES,
    STATUS_AT_ONCE,
    STATUS_PER_SECOND,
    URGENT,
    only_fast,
    progress_every,
    without_empty,
)
from adaptrain_operator.core import naming
from adaptrain_operator.core.containers import timestamp
from adaptrain_operator.core.defaults import OURS, Bounds, Defaults
from adaptrain_operator.core.job.essentials import Essentials, decide_anyhow, decide_essentials
from adaptrain_operator.core.job.reconcile import decide
from adaptrain_operator.core.objects import ownership
from adaptrain_operator.core.objects.quantities import bounds_of
from adaptrain_operator.core.observed import Claim, Contact, Job, Observed, Pod, Problem
from adaptrain_operator.core.plan import Deletion, Plan
from adaptrain_operator.core.refusals import refusal
from adaptrain_operator.core.stored_status import read_status
from adaptrain_operator.core.text import first_problem
from adaptrain_operator.kube.client import Client
from adaptrain_operator.kube.errors import Conflict, NotFound, Refused
from adaptrain_operator.kube.kinds import CLAIM, JOB, LIMIT_RANGE, POD
from adaptrain_operator.runtime.budget import Bucket
from adaptrain_operator.runtime.cache import Cache, Key
from adaptrain_operator.runtime.events import Events
from adaptrain_operator.runtime.node_leases import NodeLeases
from adaptrain_operator.runtime.workqueue import Queue

logger = logging.getLogger(__name__)

Object = dict[str, Any]

CLAIM_EVERY = 4.0
REFUSED_AGAIN, LEAVING_AGAIN = 30.0, 4.0
"""Longest seconds until a refused request is tried again, and until a name is looked at that is about to be free."""
DECIDE_AGAIN = 30.0
"""Seconds until a job is decided again whose decision failed."""


class Contacts(Protocol):
    """The rest of the operator's view of coordinators."""

    @property
    def asked(self) -> int: ...
    def ask(self, key: Key, number: int, address: str, node: str | None, token: str, settled: bool = False) -> None: ...
    def stop(self, key: Key) -> None: ...
    def contact(self, key: Key) -> Contact: ...
    def say(self, key: Key, trials: TrialReports | None) -> None: ...


@dataclass(slots=True)
class _JobCache:
    """What is remembered of a job between decisions. Losing all of it costs a few requests and nothing else."""

    uid: str
    spec: tuple[int, TrainingJobSpec | None, str] | None = None
    """As it was read last: its generation, and why it can't be read if that is so."""
    objects: Made = field(default_factory=Made)
    problem: Problem | None = None
    refusals: int = 0
    bounds: Bounds | None = None
    """What the namespace's LimitRanges want of a container, read when one refused a pod."""
    generation: int = 0
    claim: Claim | None = None
    claim_name: str = ""
    claim_read: float = 0.0
    made: dict[str, Any] = field(default_factory=dict)
    """What was made of the spec."""
    size: int = 0
    """Bytes of the spec."""
    status_written: float = 0.0
    writes: Bucket = field(default_factory=lambda: Bucket(STATUS_PER_SECOND, STATUS_AT_ONCE))

    @property
    def waiting(self) -> bool:
        """Whether it is too early to try again what was refused."""
        return self.problem is not None and clock.now() < self.problem.retry_at


class Reconciler:
    """One per process; jobs are worked on concurrently, each by one worker at a time."""

    def __init__(
        self,
        client: Client,
        cache: Cache,
        queue: Queue[Key],
        contacts: Contacts,
        leases: NodeLeases,
        events: Events,
        default_image: str,
        defaults: Defaults = OURS,
        trust: float = TRUST,
    ) -> None:
        """
        Args:
            trust: seconds that an object which isn't watched is taken to be as it was.
        """
        self._client = client
        self._maker = Maker(client, cache, trust)
        self._cache = cache
        self._queue = queue
        self._contacts = contacts
        self._leases = leases
        self._events = events
        self._default_image = default_image
        self._defaults = defaults
        self._memories: dict[Key, _JobCache] = {}

    async def reconcile(self, key: Key) -> None:
        """Bring one job closer to what is wanted. Raises what a retry may cure."""
        raw = self._cache.job(key)
        if raw is None:
            self.forget(key)
            return
        if raw["spec"].get("managedBy") not in (None, OPERATOR):
            self.forget(key)  # another controller's: not even its status is ours
            return
        memory = self._memory(key, raw)
        job = self._read(memory, raw)
        if job is None:
            await self._carry_out_essentials(key, memory, raw)
            return
        await self._look_at_claim(memory, job)
        plan = self._decide(key, memory, job)
        if not await self._make_children(key, memory, job, plan):
            # No pod's number is used up for a pod that can't be made.
            plan = self._decide(key, memory, job)
        await self._carry_out(key, memory, raw, job, plan)
        if plan.suspects:
            await self._leases.refresh(plan.suspects)
        if plan.requeue_after is not None:
            self._queue.add(key, plan.requeue_after)
        if plan.status.phase in ("Succeeded", "Failed") and not plan.delete:
            # There may be thousands of them, and little is left to decide.
            self._memories.pop(key, None)

    def _decide(self, key: Key, memory: _JobCache, job: Job) -> Plan:
        plan, left_out = decide_anyhow(decide, job, self._observe(key, memory, job), clock.now())
        if left_out:
            metrics.DECISIONS_REDUCED.labels(left_out[-1]).inc()
            plan.wake(DECIDE_AGAIN)
        if plan.apply:
            # Nobody tells us of a change of what isn't watched.
            plan.wake(self._maker.trust)
        return plan

    def forget(self, key: Key) -> None:
        """The job is gone."""
        self._contacts.stop(key)
        self._memories.pop(key, None)

    def distrust(self, key: Key) -> None:
        """The coordinator refused our token: read it again."""
        memory = self._memories.get(key)
        if memory is not None:
            memory.objects.token = None
        self._queue.add(key, 1.0)

    def until_progress(self, key: Key) -> float:
        """Seconds until it may be written again how far a job has come."""
        memory = self._memories.get(key)
        if memory is None:
            return 0.0
        every = progress_every(self._contacts.asked, memory.size)
        return max(0.0, memory.status_written + every - clock.now())

    def _memory(self, key: Key, raw: Object) -> _JobCache:
        uid = raw["metadata"]["uid"]
        memory = self._memories.get(key)
        if memory is None or memory.uid != uid:
            # Another job of the same name: nothing of the old one holds.
            self._contacts.stop(key)
            memory = self._memories[key] = _JobCache(uid)
        generation = raw["metadata"].get("generation", 0)
        if memory.generation != generation:
            # The user may just have mended what was refused.
            memory.generation, memory.problem, memory.refusals = generation, None, 0
        return memory

    def _read(self, memory: _JobCache, raw: Object) -> Job | None:
        meta = raw["metadata"]
        spec = self._read_spec(memory, raw)
        if spec is None:
            return None
        return Job(
            name=meta["name"],
            namespace=meta["namespace"],
            uid=meta["uid"],
            generation=meta.get("generation", 0),
            created=timestamp(meta.get("creationTimestamp")) or 0.0,
            deleting="deletionTimestamp" in meta,
            spec=spec,
            status=read_status(raw["status"]),
            made=memory.made,
        )

    def _read_spec(self, memory: _JobCache, raw: Object) -> TrainingJobSpec | None:
        """Once for each generation: it may have a megabyte, and the status changes all the time."""
        meta = raw["metadata"]
        generation = meta.get("generation", 0)
        if memory.spec is None or memory.spec[0] != generation:
            memory.made, memory.size = {}, len(json.dumps(raw["spec"]))
            try:
                memory.spec = generation, _spec(raw), ""
            except ValidationError as problem:
                message = f"spec.{first_problem(problem)[:800]}: correct it, or upgrade the operator"
                memory.spec = generation, None, message
                logger.warning("%s", message, extra={"job": f"{meta['namespace']}/{meta['name']}"})
        return memory.spec[1]

    async def _carry_out_essentials(self, key: Key, memory: _JobCache, raw: Object) -> None:
        """The schema let it pass, this operator can't read it: say so, and suspend, end or remove it if that is due."""
        assert memory.spec is not None
        meta = raw["metadata"]
        if "deletionTimestamp" in meta:
            return
        pods = self._cache.pods(key, meta["uid"])
        seen = Observed(tuple(pod for role, pod in pods if role == naming.WORKER), _coordinators(pods))
        essentials, status = Essentials.read(raw["spec"]), read_status(raw["status"])
        plan = decide_essentials(
            essentials, status, meta.get("generation", 0), seen, clock.now(), ("InvalidSpec", memory.spec[2])
        )
        await self._write_status(key, memory, raw, plan.status)
        if plan.remove_job:
            await self._remove_job(key, meta["uid"])
            return
        await _all(self._delete(key, deletion) for deletion in plan.delete)
        if plan.requeue_after is not None:
            self._queue.add(key, plan.requeue_after)

    def _observe(self, key: Key, memory: _JobCache, job: Job) -> Observed:
        pods = self._cache.pods(key, job.uid)
        return Observed(
            workers=tuple(pod for role, pod in pods if role == naming.WORKER),
            coordinators=_coordinators(pods),
            children=self._cache.children(key, job.uid),
            contact=self._contacts.contact(key),
            nodes=self._cache.nodes(),
            leases=self._leases.seen(),
            claim=memory.claim,
            problem=memory.problem,
            default_image=self._default_image,
            defaults=self._defaults if memory.bounds is None else replace(self._defaults, bounds=memory.bounds),
        )

    async def _look_at_claim(self, memory: _JobCache, job: Job) -> None:
        """Read the checkpoint's claim: once if all is well, again and again while it is missing."""
        volume = job.spec.checkpoint.volume if job.spec.checkpoint is not None else None
        if volume is None or job.deleting:
            memory.claim = None
            return
        name = volume.persistent_volume_claim.claim_name
        now = clock.now()
        good = memory.claim is not None and memory.claim.exists and memory.claim_name == name
        # One that a single node can mount may be made anew for several.
        settled = memory.claim is not None and now - memory.claim_read < (60 if _single(memory.claim) else 3600)
        if good and settled:
            return
        if memory.claim is not None and memory.claim_name == name and now - memory.claim_read < CLAIM_EVERY:
            return
        try:
            claim = await self._client.get(CLAIM, job.namespace, name)
            memory.claim = Claim(True, tuple((claim.get("spec") or {}).get("accessModes") or ()))
        except NotFound:
            memory.claim = Claim(False)
        except Refused:
            memory.claim = Claim(True, known=False)
        memory.claim_name, memory.claim_read = name, now

    async def _look_at_limits(self, memory: _JobCache, job: Job) -> None:
        """Read what the namespace's LimitRanges want of a container: what we choose gives way to it."""
        with contextlib.suppress(Refused):
            ranges = [one async for one, _ in self._client.list(LIMIT_RANGE, job.namespace)]
            memory.bounds = bounds_of(ranges)

    async def _carry_out(self, key: Key, memory: _JobCache, raw: Object, job: Job, plan: Plan) -> None:
        """In the order that a crash at any point leaves something that the next decision can go on from."""
        await self._write_status(key, memory, raw, plan.status)
        if plan.remove_job:
            await self._remove_job(key, job.uid)
            return
        await _all(self._delete(key, deletion) for deletion in plan.delete)
        refused = False
        if plan.create and not memory.waiting:
            try:
                await self._make_pods(job, plan)
            except Refused as problem:
                refused = True
                self._refused(key, memory, problem)
                if memory.problem is not None and memory.problem.reason == "OutsideLimitRange":
                    await self._look_at_limits(memory, job)
            else:
                memory.problem, memory.refusals = None, 0
        if plan.ask is not None and memory.objects.token is not None:
            number, address = plan.ask
            node = next((pod.node for _, pod in self._cache.pods(key, job.uid) if pod.ip == address), None)
            calm = not plan.create and not plan.delete
            settled = calm and plan.status.phase == "Running" and plan.status.ready_replicas == job.spec.wanted_workers
            self._contacts.ask(key, number, address, node, memory.objects.token, settled)
        elif plan.status.phase in ("Succeeded", "Failed", "Suspended"):
            self._contacts.stop(key)
        for event in plan.events:
            if not (refused and event.made):
                self._events.tell(job, event)

    async def _make_children(self, key: Key, memory: _JobCache, job: Job, plan: Plan) -> bool:
        """All that a pod can't do without, before any pod; whether that is there."""
        if memory.waiting:
            return True
        needed = [self._maker.child(memory.objects, job, child) for child in plan.apply]
        if plan.create or plan.ask is not None:
            needed.append(self._ensure_token(memory, job))
        try:
            await _all(needed)
        except Taken as problem:
            leaving = problem.reason == ownership.LEAVING
            self._put_off(key, memory, problem.reason, str(problem), LEAVING_AGAIN if leaving else REFUSED_AGAIN)
        except Refused as problem:
            self._refused(key, memory, problem)
        else:
            if memory.problem is not None and memory.problem.reason in (ownership.TAKEN, ownership.LEAVING):
                memory.problem, memory.refusals = None, 0
            return True
        return False

    async def _ensure_token(self, memory: _JobCache, job: Job) -> None:
        await self._maker.token(memory.objects, job)

    async def _make_pods(self, job: Job, plan: Plan) -> None:
        # Workers hold what they are given, so they come only after the coordinator that they can't do without.
        first, rest = plan.create[:1], plan.create[1:]
        if first and first[0]["metadata"]["labels"][naming.ROLE] == naming.COORDINATOR:
            await self._create_pod(job, first[0])
        else:
            rest = plan.create
        await _all(self._create_pod(job, pod) for pod in rest)

    def _refused(self, key: Key, memory: _JobCache, problem: Refused) -> None:
        reason, message = refusal(problem.status, problem.message)
        self._put_off(key, memory, reason, message, REFUSED_AGAIN)

    def _put_off(self, key: Key, memory: _JobCache, reason: str, message: str, longest: float) -> None:
        """Try again ever more seldom."""
        now = clock.now()
        delay = min(longest, 2.0 ** min(memory.refusals, 10))
        memory.refusals += 1
        since = now if memory.problem is None else memory.problem.since
        memory.problem = Problem(reason, message, since, now + delay)
        logger.warning("%s: %s", reason, message, extra={"job": "/".join(key)})
        self._queue.add(key)

    async def _write_status(self, key: Key, memory: _JobCache, raw: Object, wanted: TrainingJobStatus) -> None:
        """Patch what differs, and nothing if nothing does."""
        before, after = without_empty(raw["status"]), without_empty(dump(wanted))
        change: Object = {name: after.get(name) for name in {*before, *after} if before.get(name) != after.get(name)}
        if not change:
            return
        if only_fast(change, before):
            left = self.until_progress(key)
            if left > 0:
                self._queue.add(key, left, aside=True)
                return
        elif not change.keys() & URGENT and not memory.writes.take():
            self._queue.add(key, memory.writes.wait(), aside=True)
            return
        uid = raw["metadata"]["uid"]
        body: Object = {"metadata": {"uid": uid}, "status": change}
        if change.keys() & RESERVES:
            # Numbers are reserved: from what we read, or not at all.
            body["metadata"]["resourceVersion"] = raw["metadata"]["resourceVersion"]
        try:
            answer = await self._client.patch_status(JOB, key[0], key[1], body)
        except Conflict:
            self._cache.put(JOB, await self._client.get(JOB, key[0], key[1]))
            raise
        except NotFound:
            self._cache.gone(JOB, key, raw["metadata"]["uid"])
            raise
        memory.status_written = clock.now()
        self._cache.put(JOB, answer)

    async def _remove_job(self, key: Key, uid: str) -> None:
        logger.info("its time to live is over", extra={"job": "/".join(key)})
        try:
            await self._client.delete(JOB, key[0], key[1], uid, background=True)
        except (NotFound, Conflict):
            self._cache.gone(JOB, key, uid)

    async def _delete(self, key: Key, deletion: Deletion) -> None:
        pod = (key[0], deletion.name)
        try:
            answer = await self._client.delete(POD, key[0], deletion.name, deletion.uid, deletion.grace)
        except (NotFound, Conflict):
            self._cache.gone(POD, pod, deletion.uid)
            self._queue.add(key)
            return
        metrics.PODS_DELETED.labels(_role(deletion.name)).inc()
        if answer.get("kind") == "Pod" and answer["metadata"].get("deletionGracePeriodSeconds"):
            self._cache.put(POD, answer)
        else:
            self._cache.gone(POD, pod, deletion.uid)
            self._queue.add(key)

    async def _create_pod(self, job: Job, pod: Object) -> None:
        if await self._maker.pod(job, pod):
            metrics.PODS_CREATED.labels(pod["metadata"]["labels"][naming.ROLE]).inc()


def _coordinators(pods: list[tuple[str, Pod]]) -> tuple[Pod, ...]:
    return tuple(pod for role, pod in pods if role == naming.COORDINATOR)


async def _all(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Everything gets its try; then the first failure counts, one that a retry won't cure before others."""
    results = await asyncio.gather(*work, return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    if taken := [failure for failure in failures if isinstance(failure, Taken)]:
        raise Taken.together(taken)
    failures.sort(key=lambda failure: not isinstance(failure, Refused))
    if failures:
        raise failures[0]


def _spec(raw: Object) -> TrainingJobSpec:
    """
    Raises:
        ValidationError: it breaks a rule of the API, or is of a search that does.
    """
    spec: TrainingJobSpec = TrainingJobSpec.model_validate(raw["spec"])
    if spec.search is not None:
        ArchitectureSearch.model_validate(spec.search)
    return spec


def _single(claim: Claim) -> bool:
    return bool(claim.access_modes) and not set(claim.access_modes) - {"ReadWriteOnce", "ReadWriteOncePod"}


def _role(name: str) -> str:
    return naming.COORDINATOR if f"-{naming.COORDINATOR}-" in name else naming.WORKER
