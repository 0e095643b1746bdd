"""Elastic training for an ordinary training loop.

::

    with Elastic(model, optimizer, dataset, batch_size=64) as elastic:
        for epoch in elastic.epochs(10):
            for x, y in elastic:
                elastic.step(F.cross_entropy(model(x), y))

Every worker of the job runs the same script. The loop's body gets this worker's part of the global batch; ``step``
sums the gradients over all workers and lets the optimizer apply them, or, if a worker was lost meanwhile, discards the
step, and the loop offers the batch again. A script that was started by hand trains by itself.

What decides how the loop goes on (early stopping) must be the same on all workers: compute it from the model, or keep
it in ``elastic.memory``, which a worker that joins later gets too. Change that, and step a scheduler, after a step that
was applied or after a pass, never before one: who joins in the middle of a pass begins it as all others did.
"""

import json
import math
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from types import TracebackType
from typing import Any, Self

import torch
from adaptrain_api.contracts.coordinator_api import EXIT_INVALID
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import default_collate

from adaptrain.config.manifest import read_job
from adaptrain.data.rng import derive, seed_global
from adaptrain.data.sources import source_of
from adaptrain.elastic.checkpoint.manager import SECTION_SECONDS
from adaptrain.elastic.checkpoint.origin import Origin
from adaptrain.elastic.collectives.gradients import Said
from adaptrain.elastic.collectives.process_group import ElasticProcessGroup, ProcessGroupBroken
from adaptrain.elastic.loop import ElasticLoop
from adaptrain.elastic.membership.arrival import arrive
from adaptrain.elastic.nonfinite import NonFiniteGuard, NotFinite
from adaptrain.elastic.script.guard import Guard
from adaptrain.elastic.script.outside import Outside
from adaptrain.elastic.script.rehearsal import check_optimizer
from adaptrain.elastic.script.task import ScriptTask
from adaptrain.elastic.session import Session, alone, prepare
from adaptrain.elastic.state.replicated import ReplicatedState, Stateful, check_model
from adaptrain.elastic.step import ElasticStep, Part
from adaptrain.errors import InvalidJob
from adaptrain.process.environment import path
from adaptrain.process.result import exit_with, failed_result, write_result
from adaptrain.process.settings import settings
from adaptrain.process.shutdown import ShutdownSignal

PLACES = 4096
"""Places in the data are told apart by so many numbers: sums of them over 4,096 workers are exact in float32."""


LONGEST_OPERATION = 86400


class Disagreement(Exception):
    """Some workers left their loop, and others did not."""


class Elastic:
    """A model, its optimizer and its training data, trained together with all other workers of the job.

    Args:
        model: the same on every worker; the first worker's weights count. Batch normalization is over the whole global
            batch, however it is split.
        optimizer: over parameters of the model: any whose step needs only the gradients, and draws no random
            numbers. What isn't among its parameters at the beginning is never trained; what is may be frozen, and
            thawed later.
        data: a map-style data set (``__len__`` and ``__getitem__``; Hugging Face's too), whose samples are shuffled,
            or an iterable one, which each worker reads whole, in the same order, and takes its part of.
        batch_size: samples of a step, over all workers together.
        scheduler: a learning rate's scheduler, or anything else with ``state_dict`` and ``load_state_dict`` in JSON.
        micro_batch: most samples that the loop gives at once. A worker's part of a batch comes in several of them if it
            is larger, and ``step`` applies the sum of their gradients with the last one.
        non_finite: what to do when a loss or a gradient is infinite or no number: "fail"; "skip" the step's samples;
            or "rollback", which also takes model and optimizer back to the newest sound checkpoint.
        seed: of the order of the samples; by default the job's.
        collate: makes a batch of a list of samples.

    Attributes:
        memory: a dict of JSON values that all workers share, as they do the model. Change it on all of them alike.

    Raises:
        InvalidJob: the model or the data can't be trained like this.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        data: Any,
        batch_size: int,
        *,
        scheduler: LRScheduler | Stateful | None = None,
        micro_batch: int | None = None,
        non_finite: str = "fail",
        seed: int | None = None,
        collate: Callable[[list[Any]], Any] = default_collate,
    ) -> None:
        self._settings = settings() if path("ADAPTRAIN_JOB_FILE") is not None else alone()
        job = read_job(self._settings.job) if self._settings.job is not None else None
        namespace, name = (job.metadata.namespace or "default", job.metadata.name) if job else ("default", "script")
        self._farewell = ShutdownSignal() if job is not None else None
        self._metrics, self._trace = prepare(self._settings, namespace, name)
        self._checkpoint = job.spec.checkpoint if job else None
        self._origin = Origin.of(job) if job else None
        self._seed = seed if seed is not None else job.spec.seed if job else 0
        self._collate = collate
        self.memory: dict[str, Any] = {}
        more: dict[str, Stateful] = {"script": _Memory(self)}
        try:
            _check(model, optimizer, batch_size, micro_batch)
            if scheduler is not None:
                _same_as_json("the scheduler's state_dict", scheduler.state_dict())
                more["scheduler"] = scheduler
            self._source = source_of(data, self._seed)
            policy = _policy(non_finite, self._settings.checkpoints is not None)
        except InvalidJob as error:
            self._fail(error)
            raise
        state = ReplicatedState(model, optimizer, more, groups=True)
        state.counters.samples = self._source.length or 0
        whole = micro_batch is None or micro_batch >= batch_size
        self._step = ElasticStep(state, self._source, policy, self._metrics, self._trace, whole)
        self._outside = Outside(model, optimizer)
        self._guard = Guard(state, self._outside)
        self._task = ScriptTask(self._step, batch_size, self._source)
        self._offered: ElasticProcessGroup | None = None
        self._part: Part | None = None
        """Of the global batch that is under way."""
        self._micro_batch = micro_batch
        self._given: torch.Tensor | None = None
        """Ids of the samples that the loop's body has, until it calls ``step``."""
        self._done = 0
        """Samples of this worker's part that it called ``step`` for."""
        self._weight: float | None = None
        """Terms that the loss of this batch is the mean of; None: one for each sample."""
        self._best_wanted = False
        self._pass_over = False
        self._final: dict[str, Any] | None = None
        """The state at the loop's end, if the others had ended it before."""
        self.ended = False

    # The user's loop

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Finish training with all others; an error is left where the operator finds it."""
        self._guard.close()
        try:
            if error is None:
                self._finish()
        except Exception as failure:
            self._fail(failure)
            raise
        if isinstance(error, Exception):
            self._fail(error)

    def epochs(self, count: int) -> Iterator[int]:
        """Numbers of the passes over the data that are left of ``count``; a resumed job begins where it was."""
        self._task.epochs = count
        self._offer()
        while not self._over:
            yield self.epoch

    def __iter__(self) -> Iterator[Any]:
        """This worker's part of each global batch, to the end of the pass."""
        # A worker that missed a pass's last step goes on with the next pass: the others' state, which it got instead,
        # is that after what the script does between two passes.
        self._pass_over = False
        while not self._pass_over and (group := self._offer()) is not None:
            if self._over:
                # It missed the last pass's last step: what the script does after the pass is in the state already.
                self._final = self._task.state.capture()
                return
            if (part := self._take(group)) is None:
                continue
            for ids in torch.split(part.ids, self._micro_batch or len(part.ids)):
                if not self._goes_on(group):
                    break
                batch = self._load(part, ids)
                try:
                    yield batch
                except GeneratorExit:
                    self._end_pass()
                    raise
                if self._given is not None:
                    raise RuntimeError("the loop's body must call elastic.step(loss) once for each batch")

    def weight(self, n: float | torch.Tensor) -> None:
        """Say, before ``step``, how many terms the loss of this batch is the mean of, such as tokens that are no
        padding: the step then takes the mean over all terms of all workers. Else each sample counts alike.

        Raises:
            ValueError: it is negative, infinite or no number.
        """
        if not 0 <= float(n) < math.inf:
            raise ValueError(f"elastic.weight({float(n)}): how many terms the loss is the mean of must be at least 0")
        self._weight = float(n)

    def step(self, loss: torch.Tensor, *, clip_norm: float | None = None) -> bool:
        """Take one optimizer step with the gradient of the mean loss over the global batch.

        Args:
            loss: the mean over the samples that the loop gave, or over as many terms as ``weight`` said: a scalar.
            clip_norm: largest norm of the gradient, over all parameters together.

        Returns:
            Whether it was applied. If not, there is another micro-batch to come, the loop offers the same samples
            again, or they are passed over (see ``non_finite``).

        Raises:
            Disagreement: another worker has left its loop.
            NotFinite: the loss or a gradient is no longer a number, on any worker.
        """
        if (part := self._part) is None or self._offered is None or self._given is None:
            raise RuntimeError("elastic.step(loss) belongs into a loop over elastic, once for each batch")
        group, given, self._given = self._offered, len(self._given), None
        weight, self._weight = given if self._weight is None else self._weight, None
        step, state = self._step, self._task.state
        if state.thawed:
            # The members must agree on it, before they sum gradients of other lengths: they meet anew, and compare.
            with self._loop.attempt():
                raise ProcessGroupBroken("other parameters are trained from now on")
            step.discard()
            self._part = self._offered = None
            return False
        self._done += given
        last = self._done >= len(part.ids)
        if self._done == given:
            state.gradients.zero()  # the script's own backward passes don't count
        else:
            state.gradients.attach()
        if part.counted and weight:
            step.add(loss * (weight / part.total), group if last else None, weight)
        elif state.statistics.exchanged:
            step.add(loss.nan_to_num() * 0, None, 0.0)
        if not last:
            return False
        self._share_random()
        self._part = self._offered = None
        applied = False
        with self._loop.attempt():
            keep = self._sum(group).keep
            state.gradients.weigh(part.total)
            if keep:
                self._keep_best()
            applied = step.apply(group, clip_norm, self._guard.ours())
            self._best_wanted = False
            self._pass_over = state.counters.cursor == 0
        step.discard()
        return applied

    def report(self, **metrics: float) -> None:
        """Tell how good the model is, as ``report(**{"val/accuracy": 0.9})``; the same on every worker."""
        c, told = self._task.state.counters, {k: float(v) for k, v in metrics.items()}
        c.metrics = c.metrics | told
        self._task.state.history.evaluated(c.step, c.epoch, told)

    def keep_best(self) -> None:
        """Take the present weights for those that training leaves behind; else the last ones are.

        They are taken when the next step begins, or at the end; of the workers it is the group's first one that
        decides, since others may have rounded in another way.
        """
        self._best_wanted = True

    @contextmanager
    def long_operation(self, seconds: float) -> Iterator[None]:
        """Around what may take this worker longer than half a minute while others wait for it, such as compiling for
        another shape, or a download: ``with elastic.long_operation(600): …``. Without it a worker that keeps all
        others waiting is taken for hung after 30 s, and replaced.

        The first step may take long anyway, and so may whatever comes before the loop.

        Args:
            seconds: at most; up to a day. After that it is taken for hung.

        Raises:
            ValueError: no such number of seconds.
        """
        if not 0 < seconds <= LONGEST_OPERATION:
            raise ValueError(
                f"elastic.long_operation({seconds}): must be more than 0 and at most {LONGEST_OPERATION} s"
            )
        if "_session" not in self.__dict__:  # nobody waits for it yet
            yield
            return
        with self._session.control.doing("section", seconds):
            yield

    @property
    def steps(self) -> int:
        """Steps that were applied."""
        return self._task.state.counters.step

    @property
    def epoch(self) -> int:
        """Passes over the data that are complete."""
        return self._task.state.counters.epoch

    # Parts of it

    def _load(self, part: Part, ids: torch.Tensor) -> Any:
        """A batch for the loop's body, whose random numbers depend on its first sample: they are the same again when
        the step is taken again by as many members."""
        self._given = ids
        samples = self._source.samples(ids)
        seed_global(derive(self._seed, "step", self._task.state.counters.step, int(ids[0]) if part.counted else -1))
        return self._collate(samples)

    def _share_random(self) -> None:
        """Between two steps, where a script evaluates, all members draw the same."""
        seed_global(derive(self._seed, "between", self._task.state.counters.step))

    def _end_pass(self) -> None:
        """The script left the loop over a pass: that is the pass's end, for all members."""
        if self._pass_over:
            return
        c, self._pass_over = self._task.state.counters, True
        c.epoch, c.cursor = c.epoch + 1, 0
        if self._part is not None:
            self._step.discard()
            self._share_random()
        self._part = self._given = self._weight = None

    def _keep_best(self) -> None:
        c = self._task.state.counters
        c.best, c.best_step = dict(c.metrics), c.step
        self._task.state.keep_best()

    def _fail(self, error: Exception) -> None:
        """Leave an error behind, and end a job's worker with it."""
        message = (
            str(error)
            if isinstance(error, InvalidJob | Disagreement | NotFinite)
            else f"{type(error).__name__}: {error}"
        )
        if self._settings.job is not None:
            traceback.print_exception(error)
            exit_with(self._settings, EXIT_INVALID if isinstance(error, InvalidJob) else 1, failed_result(message))

    # A worker says hello when its loop begins: what a script does before keeps nobody waiting.

    @cached_property
    def _session(self) -> Session:
        given = self._settings, self._metrics, self._trace, self._checkpoint
        return Session(*given, arrive(self._settings, self._farewell), origin=self._origin)

    @cached_property
    def _loop(self) -> ElasticLoop:
        return self._session.loop(self._task)

    @cached_property
    def _units(self) -> Iterator[ElasticProcessGroup]:
        return self._loop.units()

    @property
    def _over(self) -> bool:
        count = self._task.epochs
        return self._loop.complete or self.ended or (count is not None and self.epoch >= count)

    def _take(self, group: ElasticProcessGroup) -> Part | None:
        """This worker's part of the next global batch; None if the group broke meanwhile.

        If the part is empty it gets a sample all the same, which counts for nothing: the loop's body runs once for
        each step on every worker.
        """
        self._outside.look()
        c = self._task.state.counters
        # Who joins may have to read an iterable data set up to the cursor.
        with self._session.control.doing("section", SECTION_SECONDS):
            ids = self._source.batch(c.epoch, c.cursor, self._task.batch_size)
        if len(ids) == 0:
            raise InvalidJob("the data set is empty: there is nothing to train on")
        with self._loop.attempt():
            self._part, self._done = self._step.take(group, ids), 0
            return self._part
        self._offered = None
        return None

    def _goes_on(self, group: ElasticProcessGroup) -> bool:
        """Whether the step that is under way still can succeed."""
        with self._loop.attempt():
            group.check()
            return True
        self._step.discard()
        self._part = self._offered = None
        return False

    def _offer(self) -> ElasticProcessGroup | None:
        """The group for the next unit; None once training is complete.

        Raises:
            SystemExit: this worker was asked to leave.
        """
        if self._loop.complete:
            return None
        if self._offered is None:
            self._offered = next(self._units, None)
        if self._offered is None:
            write_result(self._settings, self._session.result(self._loop, self._task))
            if not self._loop.complete:
                raise SystemExit(0)
        return self._offered

    def _sum(self, group: ElasticProcessGroup, vote: float = 0.0) -> Said:
        """Sum the gradients over all workers. Returns what all said.

        Raises:
            Disagreement: some are elsewhere.
        """
        state = self._task.state
        c = state.counters
        place = derive(c.epoch, c.cursor) % PLACES
        keep = float(self._best_wanted and group.rank == 0)
        self._step.sum(group, Said(vote, place, keep))
        said, where = state.gradients.said, f"at step {c.step}"
        advice = "let only the model, elastic.memory, elastic.steps and elastic.epoch decide"
        if (votes := round(said.vote)) not in (0, group.size):
            raise Disagreement(
                f"{votes} of {group.size} workers left the loop {where}, and the others did not: {advice} when it ends"
            )
        if not votes and said.place != place * group.size:
            raise Disagreement(f"some workers left a pass before the others did, {where}: {advice} when it ends")
        return said

    def _finish(self) -> None:
        """End training together with all others, and leave the model behind."""
        if self._final is not None:
            self._task.state.restore(self._final)
        # Before the next group is joined: a worker that missed the last step learns it with the state.
        self.ended = True
        while (group := self._offer()) is not None:
            self._offered = None
            c = self._task.state.counters
            with self._loop.attempt():
                self._step.attend(group)
                if self._sum(group, vote=1.0).keep or not c.best_step:
                    self._keep_best()
                self._task.state.applied(group)
                c.stopped = f"{c.epoch} epochs"


def _check(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch_size: int, micro_batch: int | None) -> None:
    """
    Raises:
        InvalidJob: they can't be trained by workers that come and go.
    """
    for name, size in (("batch_size", batch_size), ("micro_batch", micro_batch)):
        if size is not None and size < 1:
            raise InvalidJob(f"{name} is {size}: it must be at least 1")
    check_model(model)
    check_optimizer(optimizer, model)


def _policy(non_finite: str, checkpoints: bool) -> NonFiniteGuard:
    """
    Raises:
        InvalidJob: there is no such policy, or nothing to go back to.
    """
    others = " or ".join(f'"{p}"' for p in ("skip", "rollback") if p != non_finite and (checkpoints or p == "skip"))
    advice = "lower the learning rate, clip the gradient, check the data"
    policy = NonFiniteGuard(non_finite, f"{advice}, or give Elastic non_finite={others}" if others else advice)
    if policy.policy == "rollback" and not checkpoints:
        raise InvalidJob("non_finite is 'rollback', and there are no checkpoints to go back to: give spec.checkpoint")
    return policy


def _same_as_json(what: str, value: dict[str, Any]) -> dict[str, Any]:
    """A copy, as another worker would get it.

    Raises:
        InvalidJob: it would get something else.
    """
    try:
        copy: dict[str, Any] = json.loads(json.dumps(value))
    except TypeError as error:
        raise InvalidJob(f"{what} holds what is not JSON ({error}): keep numbers, text, lists and dicts") from error
    if copy != value:
        raise InvalidJob(f"{what} is another one after JSON: give dicts text for keys, and lists instead of tuples")
    return copy


class _Memory:
    """What a script remembers, and whether it has left its loop, as a part of the state."""

    def __init__(self, elastic: Elastic) -> None:
        self._elastic = elastic

    def state_dict(self) -> dict[str, Any]:
        memory = _same_as_json("elastic.memory", self._elastic.memory)
        return {"memory": memory, "ended": self._elastic.ended, "best": self._elastic._best_wanted}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._elastic.ended = state_dict["ended"]
        self._elastic._best_wanted = state_dict.get("best", False)
        # In place: the script may hold it.
        self._elastic.memory.clear()
        self._elastic.memory.update(state_dict["memory"])
