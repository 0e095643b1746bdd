"""A search's coordinator: gives trials to evaluators, writes down what they tell, and says how it goes.

Evaluators hold one authenticated connection each. What is told is answered when the study has it, so an evaluator that
gets no answer tells it again, to this coordinator or to the next one. It imports no torch.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptrain_api.contracts.coordinator_api import (
    Member,
    Progress,
    SearchProgress,
    Silent,
    TrialReports,
    TrialResult,
    TrialWeights,
)
from adaptrain_api.search.job import HEAVY, ArchitectureSearch

from adaptrain import clock
from adaptrain.observability.metrics import SearchMetrics
from adaptrain.rpc import framing
from adaptrain.rpc.listener import Guest
from adaptrain.rpc.messages import PEERS
from adaptrain.rpc.server import Announce, Reply, Site, listen, meet
from adaptrain.search.algorithms.base import Proposal
from adaptrain.search.algorithms.oneshot import SUPERNET
from adaptrain.search.algorithms.registry import make_algorithm, make_pruner
from adaptrain.search.algorithms.scalarization import Searcher
from adaptrain.search.evaluation.messages import FROM_EVALUATOR
from adaptrain.search.evaluation.parameters import check
from adaptrain.search.evaluation.unused_dimensions import UnusedDimensions
from adaptrain.search.job_trials import OPERATOR, TrialJobs
from adaptrain.search.scheduler import TrialScheduler
from adaptrain.search.spaces.registry import make_space
from adaptrain.search.study import weights_retention
from adaptrain.search.study.study import (
    STATES,
    Study,
    TrialRecord,
    as_architecture,
    as_ranking,
    finite,
    one_line,
    open_store,
)
from adaptrain.search.subprocess import SubprocessSearcher

log = logging.getLogger(__name__)

SILENCE_SECONDS = 10.0
"""An evaluator that was not heard for so long is taken for lost."""
SILENT_KEPT = 256
RETRY_SECONDS = 1.0
TICK_SECONDS = 0.5


@dataclass
class _Evaluator:
    id: str
    name: str
    joined: float
    writer: asyncio.StreamWriter
    heard: float
    """When, of a clock that is never set."""
    ended: int = 0


class SearchCoordinator:
    """Serves one search until cancelled.

    Raises:
        InvalidJob: the search can't be run as it is.
        OSError: its storage can't be used now.
    """

    def __init__(
        self, number: int, token: str, search: ArchitectureSearch, volume: Path | None, url: str | None
    ) -> None:
        meta, spec = search.metadata, search.spec
        self.number, self._token, self._volume = number, token, volume
        namespace = meta.namespace or "default"
        check(spec)
        self._space = make_space(spec.space)
        self._searcher: Searcher
        if spec.algorithm.name in HEAVY:
            self._searcher = SubprocessSearcher(spec, self._space)
        else:
            self._searcher = make_algorithm(spec, self._space)
        name = f"{namespace}.{meta.name}"
        self._study = Study(lambda: open_store(volume, url), name, meta.uid or name, number, spec, self._space)
        history = self._study.history()
        known = [] if spec.warm_start is None else self._study.known(f"{namespace}.{spec.warm_start.search}")
        # Of jobs that are trials, even the first coordinator may find some: those of a pool that was made again.
        returning = number > 1 or spec.execution == "Jobs"
        self._dispatch = TrialScheduler(spec, self._searcher, make_pruner(spec.pruning), history, known, returning)
        self._evaluators: dict[str, _Evaluator] = {}
        self._silent: dict[str, Silent] = {}
        self._told: list[TrialRecord] = []
        self._unwritten: dict[int, asyncio.Future[None]] = {}
        self._answers: set[asyncio.Task[None]] = set()
        self._asking = asyncio.Lock()
        self._tell = asyncio.Event()
        self._metrics = SearchMetrics(namespace, meta.name)
        for state in STATES:
            self._metrics.ended(state, sum(one.state == state for one in history))
        self._storage_error: str | None = None
        self._unread = UnusedDimensions()
        most = spec.parallelism.max
        self._jobs = TrialJobs(self._dispatch, self._space, most) if spec.execution == "Jobs" else None

    async def run(self, host: str, control_port: int, http_port: int, announce: Announce | None = None) -> None:
        """Serve for ever. ``announce`` is called with the two ports once they are open.

        Raises:
            Superseded: a newer coordinator has the study.
        """
        ports = host, control_port, http_port
        told = None if self._jobs is None else self._told_of_jobs
        site = Site(self._metrics.registry, self._metrics.refusals, self.progress, told)
        control = listen(self._serve, site, self._token, ports, announce)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(control.run())
            tasks.create_task(self._write())
            tasks.create_task(self._watch())
            if self._jobs is not None:
                tasks.create_task(self._order(self._jobs))

    def progress(self) -> Progress:
        """A snapshot for the operator."""
        now, d = clock.now(), self._dispatch
        # It ends when its last trial is written down: whoever hears of the end may stop this process at once.
        verdict = None if self._unwritten else d.verdict(now)
        top = [self._result(one) for one in d.standings.top]
        busy = d.busy
        return Progress(
            number=self.number,
            state="done" if verdict is not None else "running" if self._evaluators or d.running else "waiting",
            members=[
                Member(id=e.id, name=e.name, step=e.ended, joined=e.joined, idle=e.id not in busy)
                for e in self._evaluators.values()
            ],
            silent=list(self._silent.values()),
            step=len(d.ended),
            metrics=top[0].metrics if top else {},
            eta_seconds=d.eta(now),
            search=SearchProgress(
                complete=len(d.ended) - len(d.failed) - d.pruned,
                pruned=d.pruned,
                failed=len(d.failed),
                running=d.running,
                top=top,
                pareto_size=len(d.standings.front),
                per_minute=round(d.per_minute(now), 2),
                evaluators=d.evaluators(now) if self._jobs is None else None,
                storage_error=self._storage_error,
                unread=self._unread.words,
                supernet=d.supernet,
                end=verdict,
                orders=[] if self._jobs is None else self._jobs.orders(),
                done=[] if self._jobs is None else self._jobs.done(set(self._unwritten)),
            ),
        )

    def _result(self, one: TrialRecord) -> TrialResult:
        choice = self._space.choice(one.architecture)
        return TrialResult(
            trial=one.number,
            metrics=one.metrics,
            choices=one_line(self._space, one.architecture),
            model=choice.get("model"),
            parameters=choice.get("parameters", {}),
            weights=one.weights,
        )

    async def _serve(self, guest: Guest) -> None:
        evaluator: _Evaluator | None = None
        orderly = False
        writer = guest.writer
        try:
            evaluator = self._greet(*await meet(guest, self._token, FROM_EVALUATOR), writer)
            while (line := await framing.read(guest.reader)) is not None:
                frame = FROM_EVALUATOR.check(line)
                if self._evaluators.get(evaluator.id) is not evaluator:
                    return
                evaluator.heard = time.monotonic()
                if frame["is"] == "leaving":
                    orderly = True
                    return
                answer = self._hear(evaluator, frame)
                if answer is not None:
                    writer.write(framing.encode(answer))
                    await writer.drain()
        except (KeyError, ValueError, TypeError) as error:  # the space's and the study's words are checked by them
            raise framing.BadFrame(repr(error)[:200]) from error
        finally:
            writer.transport.abort()
            if evaluator is not None and self._evaluators.get(evaluator.id) is evaluator:
                del self._evaluators[evaluator.id]
                self._gone(evaluator.id, orderly)

    def _greet(self, hello: framing.Frame, reply: Reply, writer: asyncio.StreamWriter) -> _Evaluator:
        now, id = clock.now(), hello["id"]
        if id not in self._evaluators and len(self._evaluators) >= PEERS:
            raise framing.BadFrame(f"there are {PEERS} evaluators already")
        if (old := self._evaluators.get(id)) is not None:
            old.writer.transport.abort()
        evaluator = _Evaluator(id, hello["name"], now, writer, time.monotonic())
        self._evaluators[id] = evaluator
        self._silent.pop(id, None)
        self._dispatch.greet(now)
        goes_on = True
        if (has := hello.get("trial")) is not None:
            architecture = as_architecture(has["architecture"])
            goes_on = self._dispatch.back(id, has["number"], architecture, has["why"], now)
        writer.write(framing.encode(reply({"do": "welcome", "number": self.number, "go": goes_on})))
        return evaluator

    def _hear(self, evaluator: _Evaluator, frame: framing.Frame) -> framing.Frame | None:
        match frame["is"]:
            case "beat":
                return {"do": "beat"}
            case "ask":
                self._later(self._give(evaluator))
                return None
            case "report":
                metrics = finite(frame["metrics"])
                number = frame["trial"]
                stop = self._dispatch.report(evaluator.id, number, frame["step"], metrics)
                return {"do": "stop", "trial": number} if stop else None
            case "offer":
                number = frame["trial"]
                wanted = self._dispatch.wants_weights(evaluator.id, number, finite(frame["metrics"]))
                return {"do": "weights", "trial": number, "wanted": wanted}
            case "tell":
                number, metrics, message = frame["trial"], finite(frame["metrics"]), frame.get("message", "")
                state = frame["state"]
                weights = None if "weights" not in frame else TrialWeights.model_validate(frame["weights"])
                found = weights, None if "ranking" not in frame else as_ranking(frame["ranking"])
                ended = self._dispatch.tell(evaluator.id, number, state, metrics, message, clock.now(), *found)
                if ended is not None:
                    evaluator.ended += 1
                    self._keep(ended)
                    if ended.state == "complete":
                        self._unread.hear(frame.get("unread", []))
                self._later(self._answer(evaluator, number))
                return None
            case other:
                raise framing.BadFrame(f"a second {other}")

    def _later(self, answer: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(answer)
        self._answers.add(task)  # a task that nobody holds may be collected
        task.add_done_callback(self._answers.discard)

    async def _give(self, evaluator: _Evaluator) -> None:
        """Answer who asks for a trial."""
        try:
            evaluator.writer.write(framing.encode(await self._choose(evaluator)))
            await evaluator.writer.drain()
        except ConnectionError:
            pass
        except Exception:
            log.exception("%s gets no trial", evaluator.name)
            evaluator.writer.transport.abort()  # it will call and ask again

    async def _choose(self, evaluator: _Evaluator) -> framing.Frame:
        dispatch = self._dispatch
        async with self._asking:  # the next one must know what this one gets
            if not self._has(evaluator):
                return {"do": "wait"}
            given = dispatch.again(evaluator.id, clock.now())
            if given is None and (number := dispatch.next(clock.now())) is not None:
                with self._metrics.ask_seconds.time():
                    proposal = await self._ask(number)
                # One that was lost meanwhile leaves it to the others.
                given = dispatch.give(evaluator.id if self._has(evaluator) else None, number, proposal, clock.now())
        if given is None:
            return {"do": "wait"}
        trial = {"do": "try", "trial": given.number, "architecture": given.architecture, "why": given.why}
        if given.architecture == SUPERNET:
            return {**trial, "supernet": True}
        return {
            **trial,
            "choices": self._space.describe(given.architecture),
            **self._space.choice(given.architecture),
        }

    def _has(self, evaluator: _Evaluator) -> bool:
        return self._evaluators.get(evaluator.id) is evaluator

    async def _ask(self, number: int) -> Proposal:
        if isinstance(self._searcher, SubprocessSearcher):
            return await asyncio.to_thread(self._searcher.ask, number, self._dispatch.tried)
        return self._searcher.ask(number, self._dispatch.tried)

    def _told_of_jobs(self, body: bytes) -> None:
        assert self._jobs is not None
        for one in self._jobs.hear(TrialReports.model_validate_json(body), clock.now()):
            self._keep(one)

    async def _order(self, jobs: TrialJobs) -> None:
        """Have an algorithm choose trials for as many jobs as there may be."""
        while True:
            given = None
            if (number := jobs.next(clock.now())) is not None:
                try:
                    with self._metrics.ask_seconds.time():
                        proposal = await self._ask(number)
                    given = self._dispatch.give(OPERATOR, number, proposal, clock.now())
                except Exception:
                    log.exception("no trial was chosen")
            await asyncio.sleep(TICK_SECONDS if given is None else 0)

    def _gone(self, id: str, orderly: bool) -> None:
        for one in self._dispatch.lost(id, clock.now(), orderly):
            self._keep(one)

    def _keep(self, one: TrialRecord) -> None:
        """Have it written down."""
        self._told.append(one)
        self._unwritten[one.number] = asyncio.get_running_loop().create_future()
        self._tell.set()

    async def _answer(self, evaluator: _Evaluator, number: int) -> None:
        """Answer who told a trial, once the study has it: it may be the second time that it is told."""
        with contextlib.suppress(ConnectionError):
            if (written := self._unwritten.get(number)) is not None:
                await asyncio.shield(written)
            evaluator.writer.write(framing.encode({"do": "told", "trial": number}))
            await evaluator.writer.drain()

    async def _write(self) -> None:
        """Write down what was told, all that waits at once."""
        while True:
            await self._tell.wait()
            self._tell.clear()
            told, self._told = self._told, []
            while True:
                try:
                    await asyncio.to_thread(self._study.record, told)
                    break
                except OSError as error:
                    self._storage_error = f"the study can't be written: {error}"
                    log.warning("%s", self._storage_error)
                    await asyncio.sleep(RETRY_SECONDS)
            self._storage_error = None
            if self._volume is not None and self._dispatch.spec.trial.callable is None:  # a function leaves no weights
                await self._sweep(self._volume)
            for one in told:
                self._metrics.ended(one.state)
                self._metrics.trial_seconds.observe(one.seconds)
                self._unwritten.pop(one.number).set_result(None)

    async def _sweep(self, study: Path) -> None:
        """Remove the weights of trials that can't win any more, and what evaluators left that were lost."""
        with contextlib.suppress(OSError):  # there is room for them, then
            names = await asyncio.to_thread(weights_retention.listed, study)
            gone = weights_retention.stale(names, self._dispatch.ended, self._dispatch.standings.kept)
            await asyncio.to_thread(weights_retention.remove, study, gone)

    async def _watch(self) -> None:
        """Drop who is silent; keep the gauges."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = time.monotonic()
            for evaluator in list(self._evaluators.values()):
                if (silence := now - evaluator.heard) > SILENCE_SECONDS:
                    log.warning("%s is silent: another one takes its trial", evaluator.name)
                    del self._evaluators[evaluator.id]
                    since = clock.now() - silence
                    self._silent[evaluator.id] = Silent(id=evaluator.id, name=evaluator.name, since=since)
                    if len(self._silent) > SILENT_KEPT:
                        del self._silent[next(iter(self._silent))]
                    evaluator.writer.transport.abort()
                    self._gone(evaluator.id, orderly=False)
            dispatch, metrics = self._dispatch, self._metrics
            metrics.evaluators.set(len(self._evaluators))
            metrics.running.set(dispatch.running)
            metrics.pareto_size.set(len(dispatch.standings.front))
            if dispatch.standings.top:
                metrics.best(dispatch.standings.top[0].metrics)
