"""The replicated state: everything that training's future depends on, the same on every member."""

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, Protocol

import torch

from adaptrain.elastic.batchnorm import BatchStatistics, check_batch_norm
from adaptrain.elastic.gradients import Gradients
from adaptrain.elastic.group import Group, GroupBroken
from adaptrain.elastic.transfer import spread
from adaptrain.elastic.weights import Weights
from adaptrain.errors import InvalidJob

TORN = -1
"""Version of a state that was being overwritten when its source was lost."""
INITIAL = 1
"""Version of the initial state, once it is decided whose counts."""


def check_model(model: torch.nn.Module) -> None:
    """
    Raises:
        InvalidJob: it can't be replicated, or there is nothing to train.
    """
    check_batch_norm(model)
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
    """Why training ended; empty while it has not."""
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


class Capture:
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
    """A model, its optimizer, the best weights so far, counters, and ``more``, whose state must be JSON."""

    def __init__(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, more: Mapping[str, Stateful] | None = None
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self._more = more or {}
        self.counters = Counters()
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._parameters = list(trained.values())
        self.gradients = self._gradients(trained)
        self.statistics = BatchStatistics(model)
        _materialize(optimizer)
        self.best = {name: t.detach().clone() for name, t in model.state_dict().items()}
        self._staging: dict[str, torch.Tensor] = {}
        self._capture: Capture | None = None

    @property
    def device(self) -> torch.device:
        """Where most of the tensors are, such as the gradients."""
        return self._parameters[0].device

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor of the state, by a stable name. They are the live ones, not copies."""
        named = {f"model.{name}": t for name, t in self.model.state_dict(keep_vars=True).items()}
        for index, parameter in enumerate(self._parameters):
            for name, value in self.optimizer.state[parameter].items():
                named[f"optimizer.{index}.{name}"] = value
        named |= {f"best.{name}": t for name, t in self.best.items()}
        return {name: t.detach() for name, t in named.items()}

    def step(self, clip_norm: float | None = None) -> None:
        """Let the optimizer apply the gradients, scaled down together if their norm is larger than ``clip_norm``."""
        self._settle()
        if clip_norm is not None:
            self.gradients.clip(clip_norm)
        self.optimizer.step()
        self.statistics.end(applied=True)

    def weights(self) -> dict[str, torch.Tensor]:
        """The live tensors that training changes at every step: the model's and the optimizer's."""
        return {name: t for name, t in self.tensors().items() if name.startswith(("model.", "optimizer."))}

    @torch.no_grad()
    def take_back(self, weights: dict[str, torch.Tensor]) -> None:
        """Go back to earlier ``weights``. The counters stay: what was done with the data was done."""
        self._settle()
        for name, t in self.weights().items():
            t.copy_(weights[name])

    def parts(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tensors like ``tensors()`` on the CPU, each as the part that it is of a whole one."""
        return tensors

    def gather_best(self) -> dict[str, torch.Tensor]:
        """The best weights, whole, for the first process to write."""
        return self.best

    def keep_best(self) -> None:
        """Take the weights of the last applied step for the best."""
        self._settle()
        for name, t in self.model.state_dict(keep_vars=True).items():
            self.best[name].copy_(self.statistics.before(t).detach())

    @torch.no_grad()
    def begin_with(self, weights: Weights) -> None:
        """Take weights from a file, for the best so far as well.

        Raises:
            InvalidJob: there is no such file, or it is of another model.
            OSError: it can't be read now.
        """
        self._settle()
        live = self.tensors()
        for name, t in weights.read(self.model.state_dict()).items():
            live[f"model.{name}"].copy_(t)
            live[f"best.{name}"].copy_(t)

    @torch.no_grad()
    def heal(self, group: Group) -> int:
        """Make all members equal to the most advanced one. Returns the version that all have then.

        Raises:
            GroupBroken: somebody was lost meanwhile; a state that was worth something is still whole.
            InvalidJob: this member's model is not the others'.
        """
        self._settle()
        c = self.counters
        known = group.gather(self._signature[1], c.version, c.group)
        self._agree(group, [digest for digest, *_ in known])
        # A unit may have been applied by some members of a group that broke, and taken again by the others with other
        # shares, which rounds differently: the later of the two counts.
        states = [(version, applied_by) for _, version, applied_by in known]
        newest, mine = max(states), states[group.rank]
        if min(states) == newest:
            return newest[0]
        live = into = self.tensors()
        if mine != newest:
            # A fresh member is overwritten in place; what is worth something must survive the loss of its source.
            if mine[0] > 0 or newest[0] == INITIAL:
                into = {name: torch.empty_like(t) for name, t in live.items()}
            else:
                c.version = TORN
        sources = [rank for rank, state in enumerate(states) if state == newest]
        try:
            with group.together():
                said = tell(group, sources[0], self._counters() if group.rank == sources[0] else None)
                spread(list(into.values()), group, sources)
        except GroupBroken:
            if mine != newest and into is live:
                group.rest()
            raise
        if mine != newest:
            if into is not live:
                for name, t in live.items():
                    t.copy_(into[name])
            self._take(said)
        return newest[0]

    def applied(self, group: Group) -> None:
        """One more unit was applied."""
        self.counters.version += 1
        self.counters.group = group.epoch

    def _agree(self, group: Group, digests: list[int]) -> None:
        """Make sure that all members have the same tensors, before any of them is sent."""
        mine, _ = self._signature
        if len(set(digests)) == 1:
            return
        with group.together():
            first = tell(group, 0, mine if group.rank == 0 else None)
        if digests[group.rank] == digests[0]:
            raise GroupBroken("another worker has another model")
        name = next(n for n in [*first, *mine] if first.get(n) != mine.get(n))
        raise InvalidJob(
            f"the workers disagree on the model: {name} is {mine.get(name, 'absent')} here and"
            f" {first.get(name, 'absent')} on the group's first worker; build the same model on all of them"
        )

    def _gradients(self, trained: dict[str, torch.nn.Parameter]) -> Gradients:
        return Gradients(trained)

    def _shapes(self) -> dict[str, str]:
        """Each tensor's shape and type in words."""
        return {name: in_words(t) for name, t in self.tensors().items()}

    @cached_property
    def _signature(self) -> tuple[dict[str, str], int]:
        """The shapes, and 56 bits of their digest: once, not at every change of members."""
        words = self._shapes()
        return words, int.from_bytes(hashlib.sha256(json.dumps(words).encode()).digest()[:7])

    def _counters(self) -> dict[str, Any]:
        self.counters.more = {name: source.state_dict() for name, source in self._more.items()}
        return asdict(self.counters)

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
        for name, sink in self._more.items():
            if name in self.counters.more:
                sink.load_state_dict(self.counters.more[name])

    def begin_capture(self) -> Capture:
        """A capture of this moment, for another thread to copy: whatever changes the state waits for that.

        The memory of the capture before it is used again.
        """
        self._settle()
        live = self.tensors()
        for name, t in self.model.named_buffers():  # a forward pass may change them
            if f"model.{name}" in live:
                live[f"model.{name}"] = t.detach().clone()
        self._capture = Capture(live, self._staging, self._counters())
        return self._capture

    def _settle(self) -> None:
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
        self._settle()
        for name, t in self.tensors().items():
            t.copy_(captured[name])
        self._take(captured["counters"])


def tell(group: Group, root: int, said: dict[str, Any] | None) -> dict[str, Any]:
    """What ``root`` says, on every member."""
    heard: dict[str, Any] = spread_words(said, group.rank == root, lambda tensor: group.broadcast(tensor, root))
    return heard


def spread_words(said: Any, speaks: bool, broadcast: Callable[[torch.Tensor], object]) -> Any:
    """What the one that speaks says (JSON), on all that call this; ``broadcast`` sends a tensor from it to them."""
    payload = json.dumps(said).encode() if speaks else b""
    length = torch.tensor([len(payload)])
    broadcast(length)
    text = torch.zeros(int(length), dtype=torch.uint8)
    if speaks:
        text.copy_(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
    broadcast(text)
    return json.loads(bytes(text.tolist()))


def in_words(t: torch.Tensor) -> str:
    """A tensor's shape, type, and kind of device."""
    return f"{list(t.shape)} {str(t.dtype).removeprefix('torch.')}" + (f" on {t.device.type}" if t.is_cuda else "")


def _materialize(optimizer: torch.optim.Optimizer) -> None:
    """Make the optimizer's state exist before the first step, so that it can be received.

    A step with learning rate 0 and zero gradients leaves the parameters as they are.
    """
    if optimizer.state:
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for values in optimizer.state.values():
        for value in values.values():
            value.zero_()
