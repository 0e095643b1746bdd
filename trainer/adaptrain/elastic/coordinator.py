"""The coordinator: knows who is a member, and tells the operator and Prometheus how training goes.

It is no part of a training step, holds nothing that can't be rebuilt from its members, and may be killed at any time.
It never imports torch, which alone would be 0.5 GB and seconds of start-up.
"""

import asyncio
import logging
import time
from typing import Any, get_args

from adaptrain_api.progress import Change, Member, Progress, Result, Silent

from adaptrain.elastic import wire
from adaptrain.elastic.membership import HUNG_SECONDS, Action, Activity, Doing, Drop, Membership, Send
from adaptrain.elastic.service import Announce, listen, welcome
from adaptrain.metrics import JobMetrics

log = logging.getLogger(__name__)

HELLO_SECONDS = 5.0
"""Who has not introduced itself by then is disconnected."""
TICK_SECONDS = 0.1
NOTE_LENGTH = 300
REPORTED = (
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
    "checkpoint_error",
    "eta_seconds",
    "goodput",
    "skipped_steps",
)
"""What the group's first member reports of the training, as fields of ``Progress``."""


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

    async def run(self, host: str, control_port: int, http_port: int, announce: Announce | None = None) -> None:
        """Serve for ever. ``announce`` is called with the two ports once they are open."""
        ports = host, control_port, http_port
        server = await listen(self._serve, self.progress, self._metrics.registry, self._token, ports, announce)
        async with server:
            while True:
                await asyncio.sleep(TICK_SECONDS)
                self._do(self._membership.tick(time.time()))

    def progress(self) -> Progress:
        """A snapshot for the operator."""
        m = self._membership
        stalls = {epoch: max(seconds) for epoch, seconds in self._stalls.items()}
        changes = [
            Change(time=c.time, epoch=c.epoch, message=c.message, count=c.count, stall=stalls.get(c.epoch))
            for c in m.changes
        ]
        members = [Member(id=x.id, name=x.name, step=x.step, joined=x.joined) for x in m.group]
        silent = [Silent(id=s.id, name=s.name, since=s.since) for s in m.silent.values()]
        return Progress(
            number=self.number,
            epoch=m.epoch,
            state=m.state,
            members=members,
            joining=m.joining,
            silent=silent,
            recent_changes=changes,
            result=self._result,
            **self._report,
        )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        id: str | None = None
        try:
            hello = await asyncio.wait_for(wire.read(reader), HELLO_SECONDS)
            if hello is None or not self._welcome(hello, writer):
                return
            id = str(hello["id"])
            if (old := self._writers.get(id)) is not None:
                old.transport.abort()
            self._writers[id] = writer
            now = time.time()
            self._do(
                self._membership.hello(
                    now,
                    id,
                    str(hello["name"]),
                    str(hello["host"]),
                    int(hello["port"]),
                    int(hello["group"]),
                    frozenset(map(str, hello["peers"])),
                    int(hello["version"]),
                )
            )
            while (frame := await wire.read(reader)) is not None:
                if self._writers.get(id) is not writer:
                    return
                self._hear(id, frame)
        except (wire.BadFrame, KeyError, ValueError, TypeError) as error:
            log.warning("a connection sent what is no frame of ours: %r", error)
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()
            if id is not None and self._writers.get(id) is writer:
                del self._writers[id]
                self._do(self._membership.gone(time.time(), id))

    def _welcome(self, hello: wire.Frame, writer: asyncio.StreamWriter) -> bool:
        if not welcome(hello, self._token, writer):
            return False
        writer.write(wire.encode({"do": "welcome", "number": self.number}))
        return True

    def _hear(self, id: str, frame: wire.Frame) -> None:
        now, m = time.time(), self._membership
        match frame.get("is"):
            case "beating":
                doing: Doing = frame["doing"] if frame["doing"] in get_args(Doing) else "idle"
                activity = Activity(doing, now - float(frame["age"]), float(frame.get("bound") or HUNG_SECONDS))
                m.beat(now, id, activity, int(frame["version"]), int(frame["step"]))
                self._do([Send(id, {"do": "beat"})])
            case "ready":
                port = frame.get("port")
                self._do(m.ready(now, id, int(frame["epoch"]), None if port is None else int(port)))
            case "broken":
                log.info("%s: %s", id, str(frame["why"])[:200])
                self._do(m.broken(now, id, int(frame["epoch"])))
            case "ended":
                self._do(m.ended(now, id, int(frame["epoch"]), bool(frame["failed"])))
            case "leaving":
                self._do(m.leaving(now, id))
            case "report":
                # The group's first rank reports. Which one that is, only the group knows: the members of a group that
                # was taken over came back in any order.
                if any(member.id == id for member in m.group):
                    self._publish({k: frame[k] for k in REPORTED if frame.get(k) is not None})
            case "note":
                m.note(now, id, str(frame["message"])[:NOTE_LENGTH])
            case "stall":
                self._stall(int(frame["epoch"]), float(frame["seconds"]))
            case "done":
                self._result = Result.model_validate(frame["result"])
                self._publish({k: frame[k] for k in REPORTED if frame.get(k) is not None})
                log.info("training is complete at step %d", self._result.step)
                self._do(m.done(now, id))
            case other:
                raise wire.BadFrame(f"unknown frame {other!r}")

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send(to, frame):
                    if (writer := self._writers.get(to)) is not None:
                        writer.write(wire.encode(frame))
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

    def _publish(self, report: dict[str, Any]) -> None:
        # Checked before it is kept: a bad report must not make /progress fail for ever.
        Progress(number=self.number, **report)
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
        if not 0 <= seconds < float("inf"):
            raise wire.BadFrame("a stall is a finite time")
        self._metrics.stall_seconds.observe(seconds)
        self._stalls.setdefault(epoch, []).append(seconds)
        while len(self._stalls) > 64:
            del self._stalls[min(self._stalls)]
