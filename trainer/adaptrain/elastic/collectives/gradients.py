"""The gradients of a replica, and their sum over a group.

They are views of flat buffers, in the reverse order of the parameters, which is about the order in which a backward
pass completes them. A large buffer is summed in buckets while backward still runs, as DistributedDataParallel does
(Li et al., 2020, section 3.2): on all members in the same order, whatever each of them computes.
"""

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch.utils.hooks import RemovableHandle

from adaptrain.elastic.collectives.process_group import ElasticProcessGroup, ProcessGroupBroken

BUCKET_BYTES = 25 << 20
"""As DistributedDataParallel's: large enough for the network, small enough to be sent early."""
TAIL = 6
"""Elements at the end of the last bucket, which is sent when backward is over."""
KEEP, PLACE, WEIGHT, VOTE, LOSS = -6, -5, -4, -3, -2
"""Places in it: see ``Said``; and the loss. The last one is the group's own (see ``ElasticProcessGroup.sum``)."""
EXACT = torch.float32.itemsize
"""Bytes of the smallest type that holds them: where all gradients are of a smaller one, they are a buffer apart."""


@dataclass(frozen=True)
class _Bucket:
    part: torch.Tensor
    """A piece of a flat buffer."""
    after: int
    """How many gradients must be complete before it can be sent."""


@dataclass(frozen=True)
class Said:
    """Numbers of members, or their sums, that travel with the gradients. Sums of whole numbers below 2^24 are exact."""

    vote: float = 0.0
    """For the task to count."""
    place: float = 0.0
    """Where in the data this member is, as a small whole number: the same on all members."""
    keep: float = 0.0
    """Whether the weights of before this step are the best."""


NOTHING = Said()


class Gradients:
    """The gradients of named parameters, and the loss that they are of."""

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], bucket_bytes: int = BUCKET_BYTES) -> None:
        self._named = dict(reversed(list(parameters.items())))
        self._bucket_bytes = bucket_bytes
        self._norm = 0.0
        self._group: ElasticProcessGroup | None = None
        """To which complete buckets are sent: only during the backward pass that completes them."""
        self._lock = threading.Lock()
        self._complete = [False] * len(self._named)
        self._before = 0
        """How many gradients are complete, up to the first that is not."""
        self._sent = 0
        self._spoiled: str | None = None
        self._allocate()
        self._hooks: list[RemovableHandle] = []
        if len(self._buckets) > 1:
            for place, parameter in enumerate(self._named.values()):
                hook = partial(self._completed, place)
                self._hooks.append(parameter.register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]

    @property
    def parameters(self) -> Mapping[str, torch.nn.Parameter]:
        """Those of which this is the gradient, by name."""
        return self._named

    def close(self) -> None:
        """The parameters have no gradient any more."""
        for hook in self._hooks:
            hook.remove()
        for parameter in self._named.values():
            parameter.grad = None

    def zero(self) -> None:
        """Begin a step."""
        self._sent = 0
        for flat in self._flats:
            flat.zero_()
        self.attach()

    def attach(self) -> None:
        """Also parameters whose gradient somebody replaced (``Optimizer.zero_grad`` does) take part in the sum."""
        for name, parameter in self._named.items():
            parameter.grad = self._as_gradient(self._views[name], parameter)

    def _own(self, parameter: torch.Tensor) -> torch.Tensor:
        """This process's part of a parameter."""
        return parameter

    def _as_gradient(self, view: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
        """What the optimizer takes for the gradient of that part."""
        return view

    def add(self, loss: torch.Tensor, group: ElasticProcessGroup | None = None, weight: float = 0.0) -> None:
        """Add a part of the batch's loss, and its gradient. With a group, complete buckets are sent meanwhile: this is
        the last part. ``weight`` is its part of what ``weigh`` divides by.

        Raises:
            RuntimeError: a gradient changed after it was sent.
        """
        self._complete = [False] * len(self._named)
        self._before = 0
        self._group = group
        try:
            loss.backward()  # type: ignore[no-untyped-call]
        finally:
            self._group = None
        if self._spoiled is not None:
            raise RuntimeError(
                f"{self._spoiled} got a second gradient in one backward pass, after the first was sent: give"
                " torch.utils.checkpoint use_reentrant=False"
            )
        self._tail[LOSS] += loss.detach().to(self._tail)
        self._tail[WEIGHT] += weight

    def sum(self, group: ElasticProcessGroup, said: Said = NOTHING) -> None:
        """Sum the gradients, the losses and what members say over all of them, in place.

        Raises:
            ProcessGroupBroken: somebody was lost meanwhile; all that was added is void.
        """
        self._tail[VOTE], self._tail[PLACE], self._tail[KEEP] = said.vote, said.place, said.keep
        *early, last = self._buckets
        try:
            with group.together():
                for bucket in early[self._sent :]:
                    group.begin_sum(bucket.part)
                group.sum(last.part)
        except ProcessGroupBroken:
            if group.abandoned:  # its thread may yet write into what it was to sum
                self._allocate()
            raise
        norms = [torch.linalg.vector_norm(flat[:-TAIL] if flat is self._tail else flat) for flat in self._flats]
        self._norm = math.hypot(*map(float, norms))

    @property
    def loss(self) -> float:
        """The loss of the whole batch, once it was summed."""
        return float(self._tail[LOSS])

    @property
    def said(self) -> Said:
        """What all members said, once it was summed."""
        keep, place, _, vote, *_ = self._tail[-TAIL:].tolist()
        return Said(vote, place, keep)

    def weigh(self, total: float) -> None:
        """Let the parts' weights, once they were summed, add up to ``total``: parts were added in proportion to their
        weight, divided by ``total``. With no weight at all there is no mean: the loss is no number."""
        if (weight := float(self._tail[WEIGHT])) != total:
            factor = total / weight if weight else math.nan
            self._scale(factor)
            self._norm *= factor
            self._tail[LOSS] *= factor

    def not_finite(self) -> str | None:
        """What is infinite or no number, in words: the same on all members, once it was summed."""
        if not math.isfinite(self.loss):
            return f"the loss became {self.loss}"
        if math.isfinite(self._norm):
            return None
        for name, view in reversed(self._views.items()):
            if not (finite := view.isfinite()).all():
                return f"the gradient of {name} became {float(view[~finite][0])}"
        return None  # it is only too long for its norm

    def clip(self, most: float) -> None:
        """Scale all down together if their norm is larger (Pascanu et al., 2013)."""
        if self._norm > most:
            self._scale(most / self._norm)

    def _scale(self, factor: float) -> None:
        for flat in self._flats:
            (flat[:-TAIL] if flat is self._tail else flat).mul_(factor)

    def _allocate(self) -> None:
        """Make the flat buffers, cut into buckets, and for each parameter its gradient, which is a view of one."""
        kinds = dict.fromkeys((p.dtype, p.device) for p in reversed(self._named.values()))
        self._flats: list[torch.Tensor] = []
        self._views: dict[str, torch.Tensor] = {}
        buckets = []
        # The last buffer is that of the parameter whose gradient is complete last.
        for kind in reversed(kinds):
            alike = {name: self._own(p) for name, p in self._named.items() if (p.dtype, p.device) == kind}
            places = [i for i, p in enumerate(self._named.values()) if (p.dtype, p.device) == kind]
            last = len(self._flats) == len(kinds) - 1 and kind[0].itemsize >= EXACT
            length = sum(p.numel() for p in alike.values())
            # Written now: the first step, for which others may wait, finds its memory there.
            flat = torch.empty(length + TAIL * last, dtype=kind[0], device=kind[1]).zero_()
            each = max(1, self._bucket_bytes // flat.itemsize)
            at = cut = 0
            for place, (name, p) in zip(places, alike.items(), strict=True):
                self._views[name] = flat[at : at + p.numel()].view_as(p)
                at += p.numel()
                while cut + each <= at and cut + each < length:
                    buckets.append(_Bucket(flat[cut : cut + each], place + 1))
                    cut += each
            buckets.append(_Bucket(flat[cut:], len(self._named) + 1 if last else places[-1] + 1))
            self._flats.append(flat)
        if not last:
            self._flats.append(torch.zeros(TAIL, dtype=torch.float32, device=flat.device))
            buckets.append(_Bucket(self._flats[-1], len(self._named) + 1))
        self._buckets = sorted(buckets, key=lambda bucket: bucket.after)
        self._tail = self._flats[-1]
        self.attach()

    def _completed(self, place: int, _: torch.Tensor) -> None:
        """Autograd has added to a gradient for the last time in this pass. It must not hear of errors."""
        with self._lock:
            if self._group is None:
                return
            if self._complete[place] and self._sent and place < self._buckets[self._sent - 1].after:
                self._spoiled = list(self._named)[place]
            self._complete[place] = True
            while self._before < len(self._complete) and self._complete[self._before]:
                self._before += 1
            while self._buckets[self._sent].after <= self._before:
                self._group.begin_sum(self._buckets[self._sent].part)
                self._sent += 1
