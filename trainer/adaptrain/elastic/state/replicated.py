"""The replicated state: everything that training's future depends on, the same on every member."""

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, Protocol

import torch
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from adaptrain.elastic.collectives.batch_norm import BatchStatistics, check_batch_norm
from adaptrain.elastic.collectives.broadcast import broadcast_tensors
from adaptrain.elastic.collectives.gradients import Gradients
from adaptrain.elastic.collectives.process_group import ElasticProcessGroup, ProcessGroupBroken
from adaptrain.elastic.state.history import History
from adaptrain.elastic.state.optimizers import OptimizerState, Unsupported
from adaptrain.elastic.storage.weights import Weights
from adaptrain.errors import InvalidJob

INCOMPLETE = -1
"""Version of a state that was being overwritten when its source was lost."""
VERSION_INITIAL = 1
"""Version of the initial state, once it is decided whose counts."""
HISTORY = "history"
"""Under this name the rows of the history go with the counters, in ``more``, which older releases pass over."""


def check_model(model: torch.nn.Module) -> None:
    """
    Raises:
        InvalidJob: it can't be replicated, or there is nothing to train.
    """
    check_batch_norm(model)
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        if isinstance(t, UninitializedParameter | UninitializedBuffer):
            raise InvalidJob(
                f"model: {name} has no shape yet: call the model once, with a sample, before it is trained"
            )
    for name, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise InvalidJob(
                f"model: {name} in its state_dict is a {type(value).__name__}, and workers send only tensors: keep it"
                " in a buffer, or let get_extra_state return a tensor"
            )
    if not any(p.requires_grad for p in model.parameters()):
        raise InvalidJob("model: there is no parameter to train")


class Stateful(Protocol):
    """Whatever else belongs to the state, such as a learning rate's scheduler."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


@dataclass
class Counters:
    """Where training is. JSON-able, and sent with the tensors."""

    version: int = 0
    """Units (steps, evaluations, …) that were applied: who has more is ahead."""
    group: int = 0
    """Epoch of the group that applied the last of them."""
    step: int = 0
    epoch: int = 0
    """Passes over the training set that are complete."""
    cursor: int = 0
    """Samples of the current pass that are done."""
    samples: int = 0
    """Samples of a whole pass; 0: nobody knows."""
    evaluated_step: int = 0
    """Step after which the validation metrics were taken."""
    stopped: str = ""
    """Why the phase ended; empty while it has not."""
    phase: int = 0
    """Number of the phase: epoch, cursor, best, best_epoch and stopped are this phase's."""
    phase_step: int = 0
    """Step before which the phase began."""
    phases: list[dict[str, Any]] = field(default_factory=list)
    """What the complete phases came to, as ``PhaseProgress``."""
    best_step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    best_epoch: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    skipped: int = 0
    """Steps whose samples were passed over, since their loss or gradient was not finite."""
    in_a_row: int = 0
    """How many of them without a good step between, or back to one checkpoint."""
    rolled_back_to: int = -1
    """Step of the checkpoint to which training went back last."""
    began: float = 0.0
    """When the first step was taken, Unix seconds; 0: not yet."""
    useful: float = 0.0
    """Seconds that the applied steps take when nothing is in their way."""
    more: dict[str, Any] = field(default_factory=dict)
    """What the state's ``more`` said when it was sent or saved."""

    @property
    def passes(self) -> int:
        """Passes over the training set that are complete, of all phases."""
        return self.epoch + sum(int(phase.get("epochs", 0)) for phase in self.phases)


class Snapshot:
    """A copy of a state that is made while training goes on, until the state is about to change."""

    def __init__(self, live: dict[str, torch.Tensor], into: dict[str, torch.Tensor], counters: dict[str, Any]) -> None:
        self._live = live
        self._into = into
        self._counters = counters
        self.copied = threading.Event()

    @torch.no_grad()
    def copy(self) -> dict[str, Any]:
        """Tensors on the CPU, and the counters."""
        try:
            for name, t in self._live.items():
                if name not in self._into:
                    self._into[name] = torch.empty_like(t, device="cpu", memory_format=torch.contiguous_format)
                self._into[name].copy_(t)
        finally:
            self.copied.set()
        return {**self._into, "counters": self._counters}


class ReplicatedState:
    """A model, its optimizer, the best weights so far, counters, and ``more``, whose state must be JSON.

    Which parameters are trained is a part of it too: a script may thaw some on its way.

    Args:
        groups: whether the optimizer's parameter groups (its learning rate) are as well.

    Attributes:
        make_optimizer: a fresh optimizer for a phase, by its number; None: there is one phase. What is received or
            loaded may be of another phase than this state is in.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        more: Mapping[str, Stateful] | None = None,
        groups: bool = False,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.make_optimizer: Callable[[int], torch.optim.Optimizer] | None = None
        self._groups = groups
        self._more = more or {}
        self.counters = Counters()
        self.history = History()
        self._named = dict(model.named_parameters())
        trained = self._trained()
        self.gradients = self._gradients(trained)
        self.statistics = BatchStatistics(model)
        # Those that are trained come first.
        self._names = [*trained, *(name for name in self._named if name not in trained)]
        self._optimizer = self._state_of(optimizer)
        self.best = {name: t.detach().clone() for name, t in model.state_dict().items()}
        self._staging: dict[str, torch.Tensor] = {}
        self._capture: Snapshot | None = None

    @property
    def device(self) -> torch.device:
        """Where most of the tensors are, such as the gradients."""
        return next(iter(self.gradients.parameters.values())).device

    @property
    def learning_rate(self) -> float:
        """The rate in force."""
        return float(self.optimizer.param_groups[0]["lr"])

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor of the state, by a stable name. They are the live ones, not copies."""
        named = {f"model.{name}": t for name, t in self.model.state_dict(keep_vars=True).items()}
        named |= self._optimizer.tensors()
        named |= {f"best.{name}": t for name, t in self.best.items()}
        return {name: t.detach() for name, t in named.items()}

    def step(self, clip_norm: float | None = None) -> None:
        """Let the optimizer apply the gradients, scaled down together if their norm is larger than ``clip_norm``."""
        self._wait_for_snapshot()
        if clip_norm is not None:
            self.gradients.clip(clip_norm)
        self.optimizer.step()
        self.statistics.end(applied=True)

    def weights(self) -> dict[str, torch.Tensor]:
        """The live tensors that training changes at every step: the model's and the optimizer's."""
        return {name: t for name, t in self.tensors().items() if name.startswith(("model.", "optimizer."))}

    def room(self, counters: dict[str, Any], device: str | None = None) -> dict[str, torch.Tensor]:
        """Memory for the tensors of another state, by its ``counters``: its optimizer may have taken other steps.

        Args:
            device: by default where each belongs.

        Raises:
            Unsupported: it is of another optimizer.
        """
        live = {name: t for name, t in self.tensors().items() if not name.startswith("optimizer.")}
        made = {name: torch.empty_like(t, device=device or t.device) for name, t in live.items()}
        phase = _phase_of(counters)
        optimizer = self._optimizer if phase == self.counters.phase else self._state_of(self._fresh(phase))
        return made | optimizer.room(_optimizer_of(counters), device)

    @torch.no_grad()
    def rollback(self, weights: dict[str, torch.Tensor], counters: dict[str, Any]) -> None:
        """Go back to earlier ``weights``, of which ``counters`` tell. This state's own counters and learning rates
        stay: what was done with the data was done. Of weights of an earlier phase the optimizer begins anew."""
        self._wait_for_snapshot()
        for name, t in self.tensors().items():
            if name.startswith("model."):
                t.copy_(weights[name])
        if _phase_of(counters) == self.counters.phase:
            self._optimizer.load(_optimizer_of(counters), weights, groups=False)
        else:
            self._use(self._fresh(self.counters.phase))

    @torch.no_grad()
    def next_phase(self, came_to: dict[str, Any]) -> None:
        """Begin the next phase: with the best weights of this one, which are its best so far, and a fresh optimizer.

        Args:
            came_to: what this phase came to.
        """
        self._wait_for_snapshot()
        c = self.counters
        live = self.tensors()
        for name in self.best:
            live[f"model.{name}"].copy_(live[f"best.{name}"])
        c.phases = [*c.phases, came_to]
        c.phase, c.phase_step, c.epoch, c.cursor = c.phase + 1, c.step, 0, 0
        c.stopped, c.best, c.best_step, c.best_epoch, c.metrics = "", {}, c.step, 0, {}
        c.evaluated_step = c.step - 1  # by this phase's measure they are to be scored
        self._use(self._fresh(c.phase))

    def _fresh(self, phase: int) -> torch.optim.Optimizer:
        """
        Raises:
            InvalidJob: there is no such phase.
        """
        if self.make_optimizer is None:
            if phase == self.counters.phase:
                return self.optimizer
            raise InvalidJob(
                f"what training goes on from is in phase {phase} of a job, and this one has no phases: begin anew, in"
                " an empty folder"
            )
        return self.make_optimizer(phase)

    def _use(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self._optimizer = optimizer, self._state_of(optimizer)
        self._staging = {}  # it holds tensors of the other one

    def _state_of(self, optimizer: torch.optim.Optimizer) -> OptimizerState:
        named = [self._named[name] for name in self._names]
        return OptimizerState(optimizer, named, self._part_of, self._whole, self._groups)

    def parts(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tensors like ``tensors()`` on the CPU, each as the part that it is of a whole one."""
        return tensors

    def gather_best(self) -> dict[str, torch.Tensor]:
        """The best weights, whole, for the first process to write."""
        return self.best

    def keep_best(self) -> None:
        """Take the weights of the last applied step for the best."""
        self._wait_for_snapshot()
        for name, t in self.model.state_dict(keep_vars=True).items():
            self.best[name].copy_(self.statistics.before(t).detach())

    @torch.no_grad()
    def load_initial(self, weights: Weights) -> None:
        """Take weights from a file, for the best so far as well.

        Raises:
            InvalidJob: there is no such file, or it is of another model.
            OSError: it can't be read now.
        """
        self._wait_for_snapshot()
        live = self.tensors()
        for name, t in weights.read(self.model.state_dict()).items():
            live[f"model.{name}"].copy_(t)
            live[f"best.{name}"].copy_(t)

    @torch.no_grad()
    def heal(self, group: ElasticProcessGroup) -> int:
        """Make all members equal to the most advanced one. Returns the version that all have then.

        Raises:
            ProcessGroupBroken: somebody was lost meanwhile; a state that was worth something is still whole.
            InvalidJob: this member's model is not the others'.
        """
        self._wait_for_snapshot()
        c = self.counters
        known = group.gather(self._signature[1], _digest(self._thawed()), c.version, c.group)
        self._agree(group, self._signature[0], [digest for digest, *_ in known])
        # A unit may have been applied by some members of a group that broke, and taken again by the others with other
        # shares, which rounds differently: the later of the two counts.
        states = [(version, applied_by) for *_, version, applied_by in known]
        newest, mine = max(states), states[group.rank]
        sources = [rank for rank, state in enumerate(states) if state == newest]
        self._agree(group, self._thawed(), [known[rank][1] for rank in sources], sources)
        if self.thawed:
            self._rebuild()
        if min(states) == newest:
            return newest[0]
        # A fresh member is overwritten in place; what is worth something must survive the loss of its source.
        fresh = mine[0] <= 0 and newest[0] != VERSION_INITIAL
        if mine != newest and fresh:
            c.version = INCOMPLETE
        live = into = self.tensors()
        try:
            with group.together():
                units = newest[0] - min(states)[0]
                said = tell(group, sources[0], self._counters(units) if group.rank == sources[0] else None)
                if mine != newest:
                    into = self.room(said)
                    if fresh:
                        into |= {name: t for name, t in live.items() if not name.startswith("optimizer.")}
                broadcast_tensors([into[name] for name in sorted(into)], group, sources)
        except ProcessGroupBroken:
            if mine != newest and fresh:
                group.rest()
            raise
        if mine != newest:
            self._fill(into, said)
        return newest[0]

    def applied(self, group: ElasticProcessGroup) -> None:
        """One more unit was applied."""
        self.counters.version += 1
        self.counters.group = group.epoch

    def _agree(
        self, group: ElasticProcessGroup, mine: dict[str, str], digests: list[int], ranks: Sequence[int] | None = None
    ) -> None:
        """Make sure that members say the same of the model, before any of them sends it.

        Args:
            digests: of what each of the ``ranks`` says: by default of all.
        """
        if len(set(digests)) == 1:
            return
        asked = ranks if ranks is not None else range(group.size)
        with group.together():
            first = tell(group, asked[0], mine if group.rank == asked[0] else None)
        if group.rank not in asked or digests[asked.index(group.rank)] == digests[0]:
            raise ProcessGroupBroken("another worker has another model")
        name = next(n for n in [*first, *mine] if first.get(n) != mine.get(n))
        raise InvalidJob(
            f"the workers disagree on the model: {name} is {mine.get(name, 'absent')} here and"
            f" {first.get(name, 'absent')} on the group's first worker; build the same model on all of them, and let"
            " only what they share decide what is trained"
        )

    # Which parameters are trained

    @property
    def thawed(self) -> bool:
        """Whether other parameters are trained than those of which the gradients are summed."""
        return any(p.requires_grad != (name in self.gradients.parameters) for name, p in self._named.items())

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self._named.items() if p.requires_grad}

    def _thawed(self) -> dict[str, str]:
        return {name: "trained" if p.requires_grad else "frozen" for name, p in self._named.items()}

    def _rebuild(self) -> None:
        """Sum the gradients of those that are trained now."""
        if not (trained := self._trained()):
            raise InvalidJob("model: there is no parameter to train any more: let some of them require gradients")
        self.gradients.close()
        self.gradients = self._gradients(trained)

    def _part_of(self, t: torch.Tensor) -> torch.Tensor:
        """This process's part of a tensor of the optimizer's."""
        return t

    def _whole(self, part: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
        """What the optimizer keeps for such a part."""
        return part

    def _gradients(self, trained: dict[str, torch.nn.Parameter]) -> Gradients:
        return Gradients(trained)

    def _shapes(self) -> dict[str, str]:
        """Shape and type in words of each tensor that all members have from the beginning: not of the optimizer's."""
        return {name: in_words(t) for name, t in self.tensors().items() if not name.startswith("optimizer.")}

    @cached_property
    def _signature(self) -> tuple[dict[str, str], int]:
        """The shapes, and 56 bits of their digest: once, not at every change of members."""
        words = self._shapes()
        return words, _digest(words)

    def _counters(self, units: int | None = None) -> dict[str, Any]:
        """
        Args:
            units: by how many units those are behind that the counters are for, at most; None: they may know nothing.
        """
        self.counters.more = {
            **{name: source.state_dict() for name, source in self._more.items()},
            "optimizer": self._optimizer.state_dict(),
            "frozen": [name for name, p in self._named.items() if not p.requires_grad],
        }
        said = asdict(self.counters)
        said["more"][HISTORY] = self.history.text(0 if units is None else self.counters.step - units)
        return said

    def _fill(self, tensors: dict[str, torch.Tensor], counters: dict[str, Any]) -> None:
        """Take over another state, whose tensors may be this one's own memory."""
        for name, t in self.tensors().items():
            if not name.startswith("optimizer.") and tensors[name] is not t:
                t.copy_(tensors[name])
        if (phase := _phase_of(counters)) != self.counters.phase:
            self._use(self._fresh(phase))
        self._optimizer.load(_optimizer_of(counters), tensors)
        frozen = counters.get("more", {}).get("frozen")
        for name, p in self._named.items() if frozen is not None else ():
            p.requires_grad_(name not in frozen)
        if self.thawed:
            self._rebuild()
        self._take(counters)

    def _take(self, counters: dict[str, Any]) -> None:
        began, have = counters.get("samples", 0), self.counters.samples
        if began and have and began != have:
            # The order of the samples depends on how many there are: some would be taken twice, and others never.
            raise InvalidJob(
                f"data: training began with {began} samples, and the data set of this worker has {have}: give it"
                " the one that training began with, or start a new job"
            )
        known = {f.name for f in fields(Counters)}  # a newer release may tell more
        self.counters = Counters(**{name: value for name, value in counters.items() if name in known})
        more = dict(self.counters.more)  # not the one of a capture, which may be restored again
        self.history.take(more.pop(HISTORY, None), self.counters.step)
        self.counters.more = more
        for name, sink in self._more.items():
            if name in self.counters.more:
                sink.load_state_dict(self.counters.more[name])

    def begin_snapshot(self) -> Snapshot:
        """A capture of this moment, for another thread to copy: whatever changes the state waits for that.

        The memory of the capture before it is used again.
        """
        self._wait_for_snapshot()
        live = self.tensors()
        for name, t in self.model.named_buffers():  # a forward pass may change them
            if f"model.{name}" in live:
                live[f"model.{name}"] = t.detach().clone()
        self._capture = Snapshot(live, self._staging, self._counters())
        return self._capture

    def _wait_for_snapshot(self) -> None:
        if self._capture is not None:
            self._capture.copied.wait()
            self._capture = None

    def capture(self) -> dict[str, Any]:
        """A copy to save while training goes on: tensors on the CPU, and the counters."""
        tensors: dict[str, Any] = {name: t.to("cpu", copy=True) for name, t in self.tensors().items()}
        return tensors | {"counters": self._counters()}

    @torch.no_grad()
    def restore(self, captured: dict[str, Any]) -> None:
        """Take over what ``capture`` gave."""
        self._wait_for_snapshot()
        self._fill(captured, captured["counters"])


def tell(group: ElasticProcessGroup, root: int, said: dict[str, Any] | None) -> dict[str, Any]:
    """What ``root`` says, on every member."""
    heard: dict[str, Any] = broadcast_json_with(said, group.rank == root, lambda tensor: group.broadcast(tensor, root))
    return heard


def broadcast_json_with(said: Any, speaks: bool, broadcast: Callable[[torch.Tensor], object]) -> Any:
    """What the one that speaks says (JSON), on all that call this; ``broadcast`` sends a tensor from it to them."""
    payload = json.dumps(said).encode() if speaks else b""
    length = torch.tensor([len(payload)])
    broadcast(length)
    text = torch.zeros(int(length), dtype=torch.uint8)
    if speaks:
        text.copy_(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
    broadcast(text)
    return json.loads(text.numpy().tobytes())


def in_words(t: torch.Tensor) -> str:
    """A tensor's shape, type, and kind of device."""
    return f"{list(t.shape)} {str(t.dtype).removeprefix('torch.')}" + (f" on {t.device.type}" if t.is_cuda else "")


def _optimizer_of(counters: dict[str, Any]) -> dict[str, Any]:
    """What counters say of the optimizer."""
    said = counters.get("more", {}).get("optimizer")
    if not isinstance(said, dict):
        raise Unsupported("it tells nothing of its optimizer")
    return said


def _phase_of(counters: dict[str, Any]) -> int:
    """Number of the phase that counters are of; those of releases that knew one phase don't tell."""
    return int(counters.get("phase", 0))


def _digest(words: dict[str, str]) -> int:
    """56 bits."""
    return int.from_bytes(hashlib.sha256(json.dumps(words).encode()).digest()[:7])
