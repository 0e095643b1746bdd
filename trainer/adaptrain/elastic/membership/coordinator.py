"""The coordinator: knows who is a member, and tells the operator and Prometheus how training goes.

It is no part of a training step, holds nothing that can't be rebuilt from its members, and may be killed at any time.
It never imports torch, which alone would be 0.5 GB and seconds of start-up.
"""

import asyncio
import logging
import time
from typing import Any, get_args

from adaptrain_api.contracts.coordinator_api import Change, Member, Progress, Result, Silent
from pydantic import ValidationError

from adaptrain import clock
from adaptrain.elastic.membership.state_machine import HUNG_SECONDS, Action, Activity, Doing, Drop, Membership, Send
from adaptrain.observability.metrics import JobMetrics
from adaptrain.rpc import framing
from adaptrain.rpc.listener import Guest
from adaptrain.rpc.messages import FROM_WORKER, PEERS, REPORT
from adaptrain.rpc.server import Announce, Site, listen, meet

log = logging.getLogger(__name__)

TICK_SECONDS = 0.1
UNREAD = 4 * 1024 * 1024
"""A worker that leaves so many bytes unread is disconnected."""


class Coordinator:
    """Serves one job until cancelled."""

    def __init__(self, number: int, token: str, minimum: int, namespace: str, name: str) -> None:
        self.number = number
        self._token = token
        self._membership = Membership(number, minimum)
        self._writers: dict[str, asyncio.StreamWriter] = {}
        self._report: dict[str, Any] = {}
        self._result: Result | None = None
        self._stalls: dict[int, list[float]] = {}
        self._metrics = JobMetrics(namespace, name)
        self._changes = 0
        self._unix = clock.now() - time.monotonic()
        """Membership has a clock that is never set; this much earlier than Unix time, for people."""

    async def run(self, host: str, control_port: int, http_port: int, announce: Announce | None = None) -> None:
        """Serve for ever. ``announce`` is called with the two ports once they are open."""
        site = Site(self._metrics.registry, self._metrics.refusals, self.progress)
        control = listen(self._serve, site, self._token, (host, control_port, http_port), announce)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(control.run())
            tasks.create_task(self._tick())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._do(self._membership.tick(time.monotonic()))

    def progress(self) -> Progress:
        """A snapshot for the operator."""
        m = self._membership
        stalls = {epoch: max(seconds) for epoch, seconds in self._stalls.items()}
        changes = [
            Change(time=c.time + self._unix, epoch=c.epoch, message=c.message, count=c.count, stall=stalls.get(c.epoch))
            for c in m.changes
        ]
        members = [
            Member(id=x.id, name=x.name, step=x.step, joined=x.joined + self._unix, trained=x.trained) for x in m.group
        ]
        silent = [Silent(id=s.id, name=s.name, since=s.since + self._unix) for s in m.silent.values()]
        return Progress(
            number=self.number,
            epoch=m.epoch,
            state=m.state,
            members=members,
            joining=m.joining,
            preparing=m.preparing,
            silent=silent,
            recent_changes=changes,
            result=self._result,
            **self._report,
        )

    async def _serve(self, guest: Guest) -> None:
        id: str | None = None
        writer = guest.writer
        try:
            hello, reply = await meet(guest, self._token, FROM_WORKER)
            if hello["id"] not in self._writers and len(self._writers) >= PEERS:
                raise framing.BadFrame(f"there are {PEERS} workers already")
            id = hello["id"]
            if (old := self._writers.get(id)) is not None:
                old.transport.abort()
            self._writers[id] = writer
            writer.write(framing.encode(reply({"do": "welcome", "number": self.number, "preparing": True})))
            self._do(
                self._membership.hello(
                    time.monotonic(),
                    id,
                    hello["name"],
                    hello["host"],
                    hello["port"],
                    hello["group"],
                    frozenset(hello["peers"]),
                    hello["version"],
                    hello.get("trained"),
                    bool(hello.get("preparing")),
                )
            )
            while (frame := await framing.read(guest.reader)) is not None:
                if self._writers.get(id) is not writer:
                    return
                self._hear(id, FROM_WORKER.check(frame))
        finally:
            writer.transport.abort()
            if id is not None and self._writers.get(id) is writer:
                del self._writers[id]
                self._do(self._membership.gone(time.monotonic(), id))

    def _hear(self, id: str, frame: framing.Frame) -> None:
        now, m = time.monotonic(), self._membership
        match frame["is"]:
            case "beating":
                doing: Doing = frame["doing"] if frame["doing"] in get_args(Doing) else "idle"
                activity = Activity(doing, now - frame["age"], frame.get("bound") or HUNG_SECONDS)
                m.beat(now, id, activity, frame["version"], frame["step"], frame.get("trained"))
                if not frame.get("preparing"):
                    self._do(m.prepared(now, id))
                self._do([Send(id, {"do": "beat", "workers": m.here})])
            case "ready":
                self._do(m.ready(now, id, frame["epoch"], frame.get("port")))
            case "broken":
                log.info("%s: %s", id, frame["why"])
                self._do(m.broken(now, id, frame["epoch"]))
            case "ended":
                self._do(m.ended(now, id, frame["epoch"], frame["failed"]))
            case "leaving":
                self._do(m.leaving(now, id))
            case "report":
                # The group's first rank reports. Which one that is, only the group knows: the members of a group that
                # was taken over came back in any order.
                if any(member.id == id for member in m.group):
                    self._publish(frame)
            case "note":
                m.note(now, id, frame["message"])
            case "stall":
                self._stall(frame["epoch"], frame["seconds"])
            case "done":
                try:
                    self._result = Result.model_validate(frame["result"])
                except ValidationError as error:
                    raise framing.BadFrame(f"done.result: {error.errors()[0]['msg']}") from error
                self._publish(frame)
                log.info("training is complete at step %d", self._result.step)
                self._do(m.done(now, id))
            case other:
                raise framing.BadFrame(f"a second {other}")

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send(to, frame):
                    if (writer := self._writers.get(to)) is not None:
                        writer.write(framing.encode(frame))
                        if writer.transport.get_write_buffer_size() > UNREAD:
                            writer.transport.abort()
                case Drop(id, why):
                    log.warning("worker %s is dropped: %s", id, why)
                    self._metrics.lost_workers.inc()
                    if (writer := self._writers.pop(id, None)) is not None:
                        writer.transport.abort()
        m = self._membership
        self._metrics.workers.set(len(m.group))
        count = m.epoch & 0xFFFFFFFF
        if count > self._changes:
            self._metrics.membership_changes.inc(count - self._changes)
            self._changes = count
            last = m.changes[-1]
            log.info("epoch %d.%d: %s", self.number, count, last.message)

    def _publish(self, frame: framing.Frame) -> None:
        report = {key: frame[key] for key in REPORT if frame.get(key) is not None}
        try:
            # Checked before it is kept: a bad report must not make /progress fail for ever.
            Progress(number=self.number, **report)
        except ValidationError as error:
            raise framing.BadFrame(f"report: {error.errors()[0]['msg']}") from error
        self._report |= report
        metrics = self._metrics
        for field, gauge in (
            ("step", metrics.step),
            ("data_epoch", metrics.epoch),
            ("loss", metrics.loss),
            ("learning_rate", metrics.learning_rate),
            ("batch_size", metrics.batch_size),
            ("samples_per_second", metrics.samples_per_second),
            ("step_seconds", metrics.step_seconds),
            ("eta_seconds", metrics.eta_seconds),
            ("goodput", metrics.goodput),
            ("skipped_steps", metrics.skipped_steps),
            ("checkpoint_step", metrics.checkpoint_step),
            ("checkpoint_time", metrics.checkpoint_timestamp),
        ):
            if field in report:
                gauge.set(report[field])
        for name, value in report.get("metrics", {}).items():
            metrics.validation(name, value)

    def _stall(self, epoch: int, seconds: float) -> None:
        self._metrics.stall_seconds.observe(seconds)
        self._stalls.setdefault(epoch, []).append(seconds)
        while len(self._stalls) > 64:
            del self._stalls[min(self._stalls)]
