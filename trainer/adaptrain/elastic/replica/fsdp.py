"""A model whose parameters are sharded among the processes of a worker (FSDP2, ``torch.distributed.fsdp``).

A process's part of the state are its shards: they are summed, sent and received like whole tensors, by and from the
processes of other workers that hold the same ones.
"""

import math
from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from adaptrain.elastic.collectives.gather import gather_json
from adaptrain.elastic.collectives.gradients import LOSS, NOTHING, Gradients, Said
from adaptrain.elastic.collectives.process_group import ElasticProcessGroup
from adaptrain.elastic.state.replicated import ReplicatedState, Stateful, in_words
from adaptrain.elastic.storage.weights import Weights
from adaptrain.errors import InvalidJob

LAYER = 1 << 16
"""Parameters from which on a layer is gathered by itself: of less, the latency of a collective would be the most."""


def shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shard a model in place among the processes of a mesh, each large layer of a Sequential or ModuleList by itself:
    so a process never gathers much more than one of them. Talks to nobody.

    Raises:
        InvalidJob: it has a parameter that can't be sharded.
    """
    # modules() yields parents first; FSDP wants the innermost first.
    containers = [m for m in model.modules() if isinstance(m, nn.Sequential | nn.ModuleList)]
    layers = [layer for container in reversed(containers) for layer in container if _size(layer) >= LAYER]
    try:
        for module in [*layers, model]:
            if not isinstance(module, FSDPModule):
                fully_shard(module, mesh=mesh)
    except (ValueError, NotImplementedError) as error:
        raise InvalidJob(
            f"model: it can't be sharded (workers.processesPerWorker is {mesh.size()}): {error}"
        ) from error
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # The loss is divided by the size of the whole batch, so the processes' gradients only add up.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return model


class ShardedGradients(Gradients):
    """Of each gradient this process sums its shard; loss and norm are of all shards."""

    def _own(self, parameter: torch.Tensor) -> torch.Tensor:
        return _local(parameter.detach())

    def _as_gradient(self, view: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
        # FSDP adds to a gradient that is there already.
        return _shard_of(view, parameter)

    def sum(self, group: ElasticProcessGroup, said: Said = NOTHING) -> None:
        super().sum(group, said)
        every = torch.tensor([self.loss, self._norm**2], dtype=torch.float64)
        group.all_reduce_local(every)
        self._tail[LOSS] = every[0]
        self._norm = math.sqrt(every[1])

    def not_finite(self) -> str | None:
        if math.isfinite(self.loss) and math.isfinite(self._norm):
            return None
        found: list[str | None] = gather_json(super().not_finite())
        return next((words for words in found if words is not None), None)


class ShardedState(ReplicatedState):
    """The state of which this process holds its shards."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        more: Mapping[str, Stateful] | None = None,
        groups: bool = False,
    ) -> None:
        super().__init__(model, optimizer, more, groups)
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        # Noted now: while a layer computes, its parameters are whole, and a checkpoint is saved beside that.
        self._as_part = {n: _as_part(t, mesh) for n, t in super().tensors().items() if isinstance(t, DTensor)}

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: _local(t) for name, t in super().tensors().items()}

    def _gradients(self, trained: dict[str, nn.Parameter]) -> Gradients:
        return ShardedGradients(trained)

    def _shapes(self) -> dict[str, str]:
        live = super().tensors()
        return {name: in_words(t) + _how(t) for name, t in live.items() if not name.startswith("optimizer.")}

    def parts(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        known = {name: self._as_part.get(self._like(name, t)) for name, t in tensors.items()}
        return {name: known[name](t) if known[name] is not None else t for name, t in tensors.items()}  # type: ignore[misc]

    def _like(self, name: str, t: torch.Tensor) -> str:
        """Of a part that the optimizer keeps the name of the parameter that is sharded like it."""
        owner = self._optimizer.owner(name)
        if owner is None or t.ndim == 0 or t.shape != _local(self._named[self._names[owner]]).shape:
            return name
        return f"model.{self._names[owner]}"

    def _part_of(self, t: torch.Tensor) -> torch.Tensor:
        return _local(t)

    def _whole(self, part: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
        return _shard_of(part, parameter.detach())

    @torch.no_grad()
    def gather_best(self) -> dict[str, torch.Tensor]:
        """All ranks must call this; only rank 0 keeps what is whole."""
        whole = {}
        for name, t in self.best.items():
            every = t.full_tensor() if isinstance(t, DTensor) else t
            if self._leads:
                whole[name] = every.cpu()
        return whole

    @torch.no_grad()
    def load_initial(self, weights: Weights) -> None:
        """Rank 0 reads the file for all ranks, who all must call this."""
        self._wait_for_snapshot()
        states = {name.removeprefix("model."): t for name, t in super().tensors().items() if name.startswith("model.")}
        found = weights.read(states) if self._leads else {}
        live = self.tensors()
        for name, t in states.items():
            part = self._part(t, found.get(name))
            live[f"model.{name}"].copy_(part)
            live[f"best.{name}"].copy_(part)

    def _part(self, like: torch.Tensor, whole: torch.Tensor | None) -> torch.Tensor:
        """This process's part of a tensor that rank 0 has."""
        if self._leads:
            assert whole is not None
            every = whole.to(like.device)
        else:
            every = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        if isinstance(like, DTensor):
            part: torch.Tensor = distribute_tensor(every, like.device_mesh, like.placements).to_local()
            return part
        dist.broadcast(every, 0)
        return every

    @property
    def _leads(self) -> bool:
        return dist.get_rank() == 0


def _how(t: torch.Tensor) -> str:
    return f" in {t.device_mesh.size()} shards" if isinstance(t, DTensor) else ""


def _as_part(whole: DTensor, mesh: DeviceMesh) -> Callable[[torch.Tensor], DTensor]:
    """What makes this process's shard of a tensor, on another mesh's device, known as that."""
    placements, shape, stride = whole.placements, whole.shape, whole.stride()
    return lambda local: DTensor.from_local(local, mesh, placements, run_check=False, shape=shape, stride=stride)


def _shard_of(local: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """A tensor sharded as another one, of which this process holds ``local``."""
    if not isinstance(whole, DTensor):
        return local
    return DTensor.from_local(
        local, whole.device_mesh, whole.placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )


def _local(t: torch.Tensor) -> torch.Tensor:
    return t.to_local() if isinstance(t, DTensor) else t


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
