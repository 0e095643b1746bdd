"""Batch normalization over a step's whole global batch, however it is split among the members.

While a step's samples are computed, ``torch.nn.functional.batch_norm`` is ours: every module that normalizes a batch
calls it (``BatchNorm1d`` to ``3d``, ``SyncBatchNorm``, timm's). So modules stay what they are, and in evaluation mode
do what they always did. Members exchange each layer's count, mean and sum of squared deviations, and merge them (Chan,
Golub and LeVeque, 1983) in float64; backward sums what the gradient of mean and variance needs (Ioffe and Szegedy,
2015, section 3).

Running statistics are part of the replicated state: a step that is not applied leaves them as they were.
"""

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from adaptrain.elastic.collectives.process_group import ElasticProcessGroup, ProcessGroupBroken
from adaptrain.errors import InvalidJob

_torch_batch_norm = F.batch_norm
_open: dict[int, "BatchStatistics"] = {}
"""The steps that are under way, by the thread that computes them: one, except where members are threads."""
_lock = threading.Lock()


class BatchStatistics:
    """The statistics of a model's batch normalization during a step.

    Between ``begin`` and ``end`` nothing of it raises ProcessGroupBroken, since a user's forward pass and autograd run
    there: ``check`` tells of a group that broke meanwhile, and the step is to be discarded.

    Attributes:
        exchanged: whether this step has normalized a batch together with other members. Their backward passes need
            each other then.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._group: ElasticProcessGroup | None = None
        self._counts = self._whole = True
        self._broken: ProcessGroupBroken | None = None
        self._normalized: set[int] = set()
        """By identity: the running statistics that this step's batch normalization moves."""
        self._watched: list[tuple[nn.Module, str, str, torch.Tensor, int]] = []
        """Each buffer when the step began: its module, that one's name, its own, and its version."""
        self._before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        """By identity: each running statistic, and what it was when the step began."""
        self.exchanged = False

    def begin(self, group: ElasticProcessGroup, counts: bool, whole: bool) -> None:
        """A step begins, whose forward passes are this thread's.

        Args:
            counts: whether this member's samples are part of the global batch.
            whole: whether a forward pass sees all of them at once.
        """
        self.end(applied=False)
        self._group, self._counts, self._whole = group, counts, whole
        self._broken, self.exchanged = None, False
        self._normalized.clear()
        self._watched.clear()
        for name, module in self._model.named_modules():
            for key, buffer in module._buffers.items():
                if buffer is not None:
                    self._watched.append((module, name, key, buffer, buffer._version))
                    if "running_mean" in module._buffers or _iterates(module, key):
                        self._keep(buffer)
        with _lock:
            _open[threading.get_ident()] = self
            # Where torch.compile is in use, it calls ours and does not look into it.
            F.batch_norm = _not_compiled() if "torch._dynamo" in sys.modules else _batch_norm

    @contextmanager
    def step(self, group: ElasticProcessGroup, counts: bool, whole: bool) -> Iterator[None]:
        """Around a step; ``end(applied=True)`` inside says that it was applied."""
        self.begin(group, counts, whole)
        try:
            yield
        finally:
            self.end(applied=False)

    def check(self) -> None:
        """
        Raises:
            ProcessGroupBroken: somebody was lost while statistics were exchanged.
            InvalidJob: a forward pass changed a buffer by what this member alone has seen.
        """
        if self._broken is not None:
            raise self._broken
        for module, name, key, buffer, version in self._watched:
            now = dict(module._buffers.items()).get(key)  # torch.jit has a mapping of its own, without get
            if (now is buffer and buffer._version == version) or id(buffer) in self._normalized:
                continue
            if key == "num_batches_tracked" or (_iterates(module, key) and self._whole):
                continue
            if now is not buffer and key in module._non_persistent_buffers_set and not _alike(now, buffer):
                continue  # a table that grew
            raise InvalidJob(
                f"model: the forward pass changes {f'{name}.{key}'.removeprefix('.')}, a buffer of a"
                f" {type(module).__name__}, by the samples that a worker alone has: set that module to evaluation mode"
                " (or track_running_stats to False), give the whole batch at once, or change the buffer after a step"
                " that was applied, by what all workers have"
            )

    def end(self, applied: bool) -> None:
        """The step ends; if it was not applied, the running statistics are what they were before it."""
        with _lock:
            if _open.get(threading.get_ident()) is self:
                del _open[threading.get_ident()]
            if not _open:
                F.batch_norm = _torch_batch_norm
        if not applied:
            with torch.no_grad():
                for live, before in self._before.values():
                    live.copy_(before)
        self._before.clear()
        self._group = self._broken = None

    def before(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the model as it was when the step that is under way began."""
        return self._before[id(tensor)][1] if id(tensor) in self._before else tensor

    def sum(self, tensor: torch.Tensor) -> bool:
        """Sum over all members, in place. Whether that succeeded."""
        if self._group is None or self._broken is not None:
            return False
        try:
            self._group.exchange(tensor)
        except ProcessGroupBroken as error:
            self._broken = error
        return self._broken is None

    def normalize(
        self,
        x: torch.Tensor,
        running: tuple[torch.Tensor | None, torch.Tensor | None],
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        momentum: float,
        eps: float,
    ) -> torch.Tensor:
        """``F.batch_norm`` in training mode, over all members' samples.

        Raises:
            InvalidJob: a forward pass doesn't see all samples of this member.
            ValueError: as ``F.batch_norm``.
        """
        group = self._group
        assert group is not None
        self._refuse_parts(group, running[0], weight)
        for statistic in running:
            self._keep(statistic)
            self._normalized.add(id(statistic))
        if group.size == 1:
            return _torch_batch_norm(x, running[0], running[1], weight, bias, True, momentum, eps)
        if eps <= 0:
            raise ValueError(f"batch_norm eps must be positive during training, but got {eps}")
        self.exchanged = True
        count, mean, deviations = self._gather(x, group)
        if count < 2:
            raise ValueError(
                "Expected more than 1 value per channel when training: the global batch has one sample; choose a"
                " batch_size that leaves no single one at the end of a pass"
            )
        variance = deviations / count
        _move(running[0], mean, momentum)
        _move(running[1], deviations / (count - 1), momentum)
        kind = _parameter_type(x, weight)
        normalized: torch.Tensor = _Normalize.apply(
            x, weight, bias, mean.to(kind), variance.to(kind), eps, count, self if self._counts else None, self
        )
        return normalized

    def _gather(self, x: torch.Tensor, group: ElasticProcessGroup) -> tuple[float, torch.Tensor, torch.Tensor]:
        """Values per channel, and of each channel mean and sum of squared deviations, over all members."""
        channels = x.shape[1]
        mine, *_ = own = _moments(x.detach())
        rows = torch.zeros(group.size, 1 + 2 * channels, dtype=torch.float64, device=x.device)
        if self._counts:
            rows[group.rank] = torch.cat([torch.full_like(own[1][:1], mine), *own[1:]])
        if not self.sum(rows):
            return max(2.0, mine), own[1], own[2]  # of a step that is discarded
        counts, means, deviations = rows[:, :1], rows[:, 1 : 1 + channels], rows[:, 1 + channels :]
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        deviations = (deviations + counts * (means - mean).square()).sum(0)
        return float(total), mean, deviations

    def _refuse_parts(self, group: ElasticProcessGroup, mean: torch.Tensor | None, weight: torch.Tensor | None) -> None:
        if self._whole and group.processes == 1:
            return
        parts, remedy = "micro-batches", "let no batch be split (micro_batch, batch.microSize)"
        if group.processes > 1:
            parts, remedy = "a worker of several processes", "set workers.processesPerWorker to 1"
        raise InvalidJob(
            f"model: {self._name(mean, weight)} normalizes by statistics of the whole global batch, which {parts} can't"
            f" give: {remedy}, set it to evaluation mode, or use GroupNorm"
        )

    def _name(self, mean: torch.Tensor | None, weight: torch.Tensor | None) -> str:
        for name, module in self._model.named_modules():
            for own, given in (("running_mean", mean), ("weight", weight)):
                if given is not None and getattr(module, own, None) is given:
                    return f"{name or 'it'}, a {type(module).__name__},"
        return "a batch normalization"

    def _keep(self, buffer: torch.Tensor | None) -> None:
        """Note what a buffer is before this step changes it."""
        if buffer is not None and id(buffer) not in self._before:
            self._before[id(buffer)] = (buffer, buffer.detach().clone())


def check_batch_norm(model: nn.Module) -> None:
    """
    Raises:
        InvalidJob: a compiled module may normalize a batch where it is out of reach.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and any("running_mean" in n for n, _ in module.named_buffers()):
            raise InvalidJob(
                f"model: {name or 'it'} was compiled by torch.jit and normalizes batches, whose statistics can't be"
                " those of the whole global batch: give the module that was compiled"
            )


def uses_batch_to_evaluate(model: nn.Module) -> bool:
    """Whether a batch normalization keeps no running statistics, so that an evaluation depends on its batches."""
    return any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
        for module in model.modules()
    )  # fmt: skip


class _Normalize(torch.autograd.Function):
    """Normalizes by given statistics, of which ``x`` is a part."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        mean: torch.Tensor,
        variance: torch.Tensor,
        eps: float,
        count: float,
        part: BatchStatistics | None,
        statistics: BatchStatistics,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps, ctx.count, ctx.part, ctx.statistics = eps, count, part is not None, statistics
        return _affine(x, mean, variance, weight, bias, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        # With given statistics torch's kernel sums dy * normalized x, and dy: the gradients of weight and bias.
        _, d_weight, d_bias = torch.ops.aten.native_batch_norm_backward(
            dy, x, weight, mean, variance, None, None, False, ctx.eps, [False, True, True]
        )
        dx = None
        if needs_x:
            sums = torch.stack([d_weight, d_bias]).double()
            ctx.statistics.sum(sums)
            if ctx.part:
                scale = (variance + ctx.eps).rsqrt()
                scale = scale if weight is None else scale * weight.detach()
                along, shift = (-sums / ctx.count).to(scale)
                # scale * (dy - mean of dy - normalized x * mean of dy * normalized x)
                dx = _affine(x, mean, variance, along * scale, shift * scale, ctx.eps)
                dx.addcmul_(dy, scale.to(dx.dtype).view(_shape(x)))
            else:
                dx = torch.zeros_like(x)
        rest = (None,) * 6
        return dx, d_weight if needs_weight else None, d_bias if needs_bias else None, *rest


def _affine(
    x: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    return torch.batch_norm(x, weight, bias, mean, variance, False, 0.0, eps, torch.backends.cudnn.enabled)


def _iterates(module: nn.Module, key: str) -> bool:
    """Whether a buffer is of spectral normalization's power iteration, which depends on the weights alone."""
    if isinstance(module, _SpectralNorm):
        return True
    hooks = module._forward_pre_hooks.values()
    return key.endswith(("_u", "_v")) and any(isinstance(hook, SpectralNorm) for hook in hooks)


def _alike(one: torch.Tensor | None, other: torch.Tensor) -> bool:
    return one is not None and (one.shape, one.dtype) == (other.shape, other.dtype)


def _moments(x: torch.Tensor) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Values per channel, and of each channel mean and sum of squared deviations (in two passes)."""
    if x.dtype in (torch.bfloat16, torch.float16):
        x = x.float()
    others = [d for d in range(x.dim()) if d != 1]
    mean = x.mean(others)
    deviations = (x - mean.view(_shape(x))).square_().sum(others)
    return float(x.numel() // x.shape[1]), mean.double(), deviations.double()


def _move(running: torch.Tensor | None, value: torch.Tensor, momentum: float) -> None:
    if running is not None:
        with torch.no_grad():
            running.mul_(1 - momentum).add_(value.to(running), alpha=momentum)


def _parameter_type(x: torch.Tensor, weight: torch.Tensor | None) -> torch.dtype:
    if weight is not None:
        return weight.dtype
    return torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype


def _shape(x: torch.Tensor) -> list[int]:
    """Of a tensor with a number for each channel, beside ``x``."""
    return [1, -1] + [1] * (x.dim() - 2)


def _statistics() -> BatchStatistics | None:
    """The step that this thread computes. On GPUs autograd has threads of its own, which may compute again what
    was not kept (``torch.utils.checkpoint``)."""
    if (found := _open.get(threading.get_ident())) is None and len(_open) == 1:
        (found,) = _open.values()
    return found


def _batch_norm(
    input: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    statistics = _statistics() if training else None
    if statistics is None:
        return _torch_batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return statistics.normalize(input, (running_mean, running_var), weight, bias, momentum, eps)


@functools.cache
def _not_compiled() -> Callable[..., torch.Tensor]:
    function: Callable[..., torch.Tensor] = torch.compiler.disable(_batch_norm)  # type: ignore[no-untyped-call]
    return function
