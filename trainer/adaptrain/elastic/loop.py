"""The elastic loop: form a group, heal, take units until the group must be left, and again.

A *unit* is whatever is applied as a whole (a step, an evaluation): all of its collectives succeed before the state
changes, so a unit that fails can be taken again in the next group, by other members, with the same outcome.
"""

import logging
import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from adaptrain_api.contracts.coordinator_api import foremost

from adaptrain import clock
from adaptrain.elastic.checkpoint.manager import ANSWER_SECONDS, MODEL_FILE, RETRY_SECONDS, SECTION_SECONDS, Checkpoints
from adaptrain.elastic.collectives.process_group import ElasticProcessGroup, ProcessGroupBroken
from adaptrain.elastic.membership.client import GenerationState
from adaptrain.elastic.membership.socket_abort import SocketAbort
from adaptrain.elastic.replica.base import Replica
from adaptrain.elastic.state import divergence
from adaptrain.elastic.state.replicated import INCOMPLETE, VERSION_INITIAL, ReplicatedState
from adaptrain.elastic.storage.lineage import Superseded
from adaptrain.errors import Refused
from adaptrain.rpc.framing import Frame

log = logging.getLogger(__name__)

REPORT_SECONDS = 0.5
LOG_SECONDS = 30.0
"""The group's first worker writes a line to its log this often, and at each new epoch."""
EPOCH_LOG_SECONDS = 1.0
"""Epochs may be shorter than this, and get no line each then."""
METRICS_SIZE = 12 * 1024
"""Bytes of metrics, as JSON, in a report and in a result: a frame holds both (``wire.MAX_FRAME``)."""
FIRST_SECONDS = 1800.0
"""Longest first step: a compiler may be at work, or an accelerator's kernels are made."""
LOGGED_METRICS = 8
LAST_SAVE_SECONDS = 20.0
"""Shorter than the grace that a pod has by default."""


class Task(Protocol):
    """What is trained: a phase, or a user's own script.

    ``remaining_steps`` is an upper bound: training may stop earlier. None: nobody knows.
    """

    state: ReplicatedState

    @property
    def finished(self) -> bool: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def remaining_steps(self) -> int | None: ...

    def use(self, checkpoints: Checkpoints | None) -> None:
        """Go back to these checkpoints where a step is not finite."""

    def reset(self) -> None:
        """Go back to the initial state."""

    def begin(self, group: ElasticProcessGroup) -> None:
        """There is no progress anywhere: put into the initial state what it does not get from the model alone.

        Only the group's first worker is asked; the others get its state.
        """

    def report(self) -> dict[str, Any]:
        """What the coordinator publishes of the training."""


def in_one_line(report: dict[str, Any], workers: int) -> str:
    """What is reported of the training, for a log."""
    parts = [f"epoch {report.get('data_epoch', 0)}, step {report.get('step', 0)}"]
    if (loss := report.get("loss")) is not None:
        parts.append(f"loss {loss:.4g}")
    parts += [f"{name}={value:.4g}" for name, value in sorted((report.get("metrics") or {}).items())[:LOGGED_METRICS]]
    if (rate := report.get("samples_per_second")) is not None:
        parts.append(f"{rate:.0f} samples/s")
    if (left := report.get("eta_seconds")) is not None:
        parts.append(f"about {left:.0f} s left")
    return ", ".join([*parts, f"{workers} worker" + ("" if workers == 1 else "s")])


class ElasticLoop:
    """Runs a task with whoever is a member.

    Whoever takes the units asks for them, since a user's script has its own loop::

        for group in loop.units():
            with loop.attempt():
                ...  # raises ProcessGroupBroken before the state changes, or applies the unit
    """

    def __init__(
        self,
        control: GenerationState,
        sockets: SocketAbort,
        task: Task,
        checkpoints: Checkpoints | None,
        replica: Replica,
    ) -> None:
        self._control = control
        self._replica = replica
        self._sockets = sockets
        self._task = task
        self._checkpoints = checkpoints
        task.use(checkpoints)
        task.state.history.recording = checkpoints is not None
        self._durations: deque[float] = deque(maxlen=32)
        self._applied: float | None = None
        self._measured = 0
        self._reported = 0.0
        self._logged = -LOG_SECONDS
        self._logged_epoch = -1
        self._broken: ProcessGroupBroken | None = None
        self.complete = False
        """Whether the task is finished, and what it leaves behind is saved."""
        self.model: str | None = None
        """File name of the best weights in the checkpoint directory, once training is finished."""

    def units(self) -> Iterator[ElasticProcessGroup]:
        """A healed group for each unit, until the task is complete, or this worker may leave or isn't needed."""
        while not self.complete:
            frame = self._control.next()
            match frame["do"]:
                case "leave" | "plan":
                    self._control.ready(frame["epoch"])
                case "form":
                    yield from self._in_group(frame)
                case "go":
                    if frame["save"]:
                        self._save_last()
                    return
                case "finish":
                    return
                case "refuse":
                    raise Refused(frame["why"])

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Around a unit: one that fails is offered again, in the next group."""
        try:
            yield
        except ProcessGroupBroken as error:
            self._broken = error

    def report(self) -> dict[str, Any]:
        """What the task reports, how long it takes, and how old the newest checkpoint is."""
        said = self._task.report()
        said |= {name: foremost(said[name], METRICS_SIZE) for name in ("metrics", "best")}
        if self._durations:
            seconds = statistics.median(self._durations)
            said["step_seconds"] = seconds
            said["samples_per_second"] = self._task.batch_size / seconds
            if (steps := self._task.remaining_steps) is not None:
                said["eta_seconds"] = steps * seconds
        if (counters := self._task.state.counters).began:
            said["goodput"] = min(1.0, counters.useful / max(1e-9, clock.now() - counters.began))
        if (c := self._checkpoints) is not None:
            said |= {"checkpoint_step": c.newest_step, "checkpoint_time": c.newest_time, "checkpoint_error": c.error}
        return said

    def _in_group(self, frame: Frame) -> Iterator[ElasticProcessGroup]:
        """Take part in an epoch's group until it is left."""
        with self._control.group(frame["epoch"], frame["peers"]):
            try:
                group = self._replica.form(self._control, self._sockets, frame, self._task.state.device)
                self._heal(group)
                while not self._task.finished:
                    yield from self._unit(group)
                    if group.leaving and not self._task.finished:
                        return
                self._conclude(group)
                self.complete = True
            except ProcessGroupBroken as error:
                # Its other members notice at once, and dropping it doesn't wait for what is under way.
                self._sockets.abort()
                self._control.broken(str(error))

    def _heal(self, group: ElasticProcessGroup) -> None:
        state = self._task.state
        newest = state.heal(group)
        if newest <= 0:
            # Nobody has any progress: all begin where the first one does.
            if group.rank == 0:
                self._begin(group, newest)
            state.heal(group)
        if self._checkpoints is not None and group.rank == 0:
            self._checkpoints.claim()  # not before it is known that what lies there is of this training
        self._publish(group, force=True)

    def _begin(self, group: ElasticProcessGroup, newest: int) -> None:
        """Begin with the newest checkpoint, else with the initial state."""
        state = self._task.state
        if not self._load(group):
            if newest == INCOMPLETE:
                self._task.reset()
            with self._control.doing("section", SECTION_SECONDS):
                self._task.begin(group)
        state.counters.version = max(VERSION_INITIAL, state.counters.version)

    def _load(self, group: ElasticProcessGroup) -> bool:
        """Whether there was a checkpoint."""
        checkpoints, state = self._checkpoints, self._task.state
        if checkpoints is None:
            return False

        def check() -> None:
            if not self._replica.all_ranks(not self._control.should_leave):
                raise ProcessGroupBroken("told to leave")
            self._publish(group, force=True)

        return checkpoints.wait_for(lambda: checkpoints.load(state), check)

    def _unit(self, group: ElasticProcessGroup) -> Iterator[ElasticProcessGroup]:
        began = time.monotonic()
        step, skipped = self._task.state.counters.step, self._task.state.counters.skipped
        first = self._applied is None
        with self._control.doing("warming" if first else "computing", FIRST_SECONDS if first else 0.0):
            yield group
        if self._broken is not None:
            error, self._broken = self._broken, None
            try:
                raise error
            finally:
                del error  # its frames hold the group
        now = time.monotonic()
        self._control.trained = True
        if self._task.state.counters.step != step:
            self._measure(group, began, now)
            if (at := self._task.state.counters.step) % divergence.EVERY_STEPS == 0:
                with self._control.doing("computing"):
                    divergence.compare(group, self._task.state.weights(), at)
        elif self._task.state.counters.skipped == skipped:
            self._task.state.counters.useful += now - began
        if self._checkpoints is not None and group.rank == 0:
            self._checkpoints.maybe_save(self._task.state)
        self._publish(group)

    def _measure(self, group: ElasticProcessGroup, began: float, now: float) -> None:
        """Tell how long a change of membership kept this worker from its next step."""
        if self._applied is not None and self._measured != group.epoch:
            stall = max(0.0, now - self._applied - statistics.median(self._durations))
            self._control.say({"is": "stall", "epoch": self._control.epoch, "seconds": stall})
        self._measured = group.epoch
        self._applied = now
        self._durations.append(now - began)
        counters = self._task.state.counters
        counters.began = counters.began or clock.now() - (now - began)
        counters.useful += statistics.median(self._durations)

    def _publish(self, group: ElasticProcessGroup, force: bool = False) -> None:
        counters = self._task.state.counters
        self._control.version, self._control.step = counters.version, counters.step
        now = time.monotonic()
        if group.rank != 0 or self._replica.rank != 0:
            return
        if force or now - self._reported >= REPORT_SECONDS:
            self._reported = now
            self._control.say({"is": "report", **self.report()})
        pause = LOG_SECONDS if counters.epoch == self._logged_epoch else EPOCH_LOG_SECONDS
        if now - self._logged >= pause:
            self._logged, self._logged_epoch = now, counters.epoch
            log.info("%s", in_one_line(self.report(), group.size))

    def _save_last(self) -> None:
        """Save what nobody else has: the last of all leaves. A disk that is full may have room again in a moment."""
        until = time.monotonic() + LAST_SAVE_SECONDS
        while self._checkpoints is not None and self._task.state.counters.version > 0:
            try:
                self._checkpoints.save(self._task.state)
                return
            except (OSError, Superseded) as error:
                self._checkpoints.failed(error)
                if self._replica.broadcast_object(time.monotonic() > until):
                    return
                time.sleep(RETRY_SECONDS)

    def _conclude(self, group: ElasticProcessGroup) -> None:
        """Leave the model and the final checkpoint behind, before anybody says that training is done."""
        if self._checkpoints is None:
            return
        while group.rank == 0:
            try:
                with self._control.doing("section", SECTION_SECONDS):
                    self._checkpoints.export(self._task.state, ANSWER_SECONDS)
                    self._checkpoints.save(self._task.state, ANSWER_SECONDS)
                break
            except (OSError, Superseded) as error:
                # The coordinator is away, without which nothing may be committed, or storage refuses. The model is
                # not given up for either; the job's condition tells.
                if not self._replica.all_ranks(not self._control.must_leave):
                    raise ProcessGroupBroken("told to leave") from None
                self._checkpoints.failed(error)
                self._checkpoints.give_up()
                self._publish(group, force=True)
                time.sleep(RETRY_SECONDS)
        group.gather(0)  # a barrier
        self.model = MODEL_FILE
