"""What the elastic loop asks of a worker's other processes: nothing, where a worker is one process."""

from collections.abc import Callable
from functools import cached_property
from typing import TypeVar

import torch
from torch import nn
from torch.distributed import ProcessGroup

from adaptrain.elastic.collectives.device import own_device
from adaptrain.elastic.collectives.process_group import ElasticProcessGroup, RendezvousPoint, form
from adaptrain.elastic.membership.client import GenerationState, Identity
from adaptrain.elastic.membership.socket_abort import SocketAbort
from adaptrain.elastic.state.replicated import ReplicatedState
from adaptrain.rpc.framing import Frame

T = TypeVar("T")

NOBODY = Identity("", "", "", 0)


class Replica:
    """The processes of one worker (its *local ranks*), of which this is number ``rank``; here it is the only one.

    All ranks walk through the same calls in the same order. Whatever one of them alone can know (an order, a failure)
    decides nothing before they agree on it.
    """

    rank = 0
    size = 1
    savers: ProcessGroup | None = None
    """Of their threads that save checkpoints, if there are several ranks."""

    @cached_property
    def device(self) -> torch.device:
        """Where this process computes."""
        return own_device(self.rank, self.size)

    def form(
        self, control: GenerationState, sockets: SocketAbort, order: Frame, device: torch.device
    ) -> ElasticProcessGroup:
        """The group of an epoch, as a ``form`` order describes it, of members whose tensors are on such devices.

        Raises:
            ProcessGroupBroken: somebody was lost meanwhile.
        """
        return form(control, sockets, order["epoch"], self.meeting(order, device))

    def alone(self) -> ElasticProcessGroup:
        """A group of this worker alone, which no coordinator knows: for what it tries before it joins the others."""
        sockets = SocketAbort()
        return ElasticProcessGroup(GenerationState(NOBODY, sockets), sockets, 0, 0, 1, None)

    def meeting(self, order: Frame, device: torch.device) -> RendezvousPoint:
        """Where the processes number ``rank`` of all workers meet."""
        name = f"epoch/{order['epoch']}/{self.rank}"
        return RendezvousPoint(name, order["rank"], len(order["peers"]), order["host"], order["port"], device)

    @property
    def state_type(self) -> type[ReplicatedState]:
        """What holds this process's part of the state."""
        return ReplicatedState

    def build(self, make: Callable[[], nn.Module]) -> nn.Module:
        """This process's part of the model that ``make`` makes."""
        return make()

    def all_ranks(self, ok: bool) -> bool:
        """Whether all ranks say so."""
        return not any(self.any_rank(not ok))

    def any_rank(self, *flags: bool) -> list[bool]:
        """For each flag whether any rank has raised it."""
        return list(flags)

    def all_gather_object(self, said: T, savers: bool = False) -> list[T]:
        """What each rank says (JSON), or each rank's thread that saves a checkpoint."""
        return [said]

    def broadcast_object(self, said: T) -> T:
        """What rank 0 says (JSON), once all ranks are here."""
        return said
