"""Sending many tensors to all members of a group: out of the memory in which they lie, into that of the others.

Large tensors are cut into pieces, several of which are on their way at any time; small ones are packed together. Where
several members have the same tensors, each of them sends every so many-th piece.
"""

from collections import deque
from collections.abc import Iterator, Sequence

import torch

from adaptrain.elastic.collectives.process_group import ElasticProcessGroup

PIECE = 1 << 25
"""Bytes sent at once: a bounded time on a slow network, and few collectives on a fast one."""
SMALL = 1 << 22
"""Bytes below which a tensor is packed with others: a copy takes less time than a collective of its own."""
AHEAD = 3
"""So many pieces are begun while an earlier one is under way."""


@torch.no_grad()
def broadcast_tensors(tensors: Sequence[torch.Tensor], group: ElasticProcessGroup, sources: Sequence[int]) -> None:
    """Overwrite tensors with what the ``sources`` (ranks, ascending) have. Those only read their own.

    All members pass tensors of the same shapes and types in the same order, and the same sources.

    Raises:
        ProcessGroupBroken: somebody was lost meanwhile; whoever is no source has tensors that are worth nothing.
    """
    if group.size == 1:
        return
    has = group.rank in sources
    even = [t.contiguous() for t in tensors]
    bundles = list(_bundles(even))
    rooms = _Rooms()
    begun: deque[tuple[torch.Tensor, list[torch.Tensor]]] = deque()
    for n, bundle in enumerate(bundles):
        root = sources[n % len(sources)]
        data = bundle[0]
        if len(bundle) > 1 or (has and group.rank != root):  # what a source passes on to others goes past its own
            data = rooms.next(sum(map(len, bundle)), data.device)
        if len(bundle) > 1 and group.rank == root:
            torch.cat(bundle, out=data)
        begun.append((data, bundle))
        ahead = min(AHEAD, len(bundles) - n - 1)
        group.broadcast(data, root, ahead)
        while len(begun) > ahead:
            data, bundle = begun.popleft()
            if len(bundle) > 1 and not has:
                for part, received in zip(bundle, torch.split(data, [len(part) for part in bundle]), strict=True):
                    part.copy_(received)
    for t, copy in zip(tensors, even, strict=True):
        if copy is not t and not has:
            t.copy_(copy)


def _bundles(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """The tensors' bytes (uint8, one dimension), cut and bundled alike for the same shapes and types: a piece of one
    tensor, or several small tensors of a device."""
    for device in dict.fromkeys(t.device for t in tensors):
        pack: list[torch.Tensor] = []
        size = 0
        for t in tensors:
            if t.device != device:
                continue
            data = t.view(-1).view(torch.uint8)
            if len(data) >= SMALL:
                yield from ([piece] for piece in torch.split(data, PIECE))
                continue
            if size + len(data) > PIECE:
                yield pack
                pack, size = [], 0
            pack.append(data)
            size += len(data)
        if size:
            yield pack


class _Rooms:
    """Memory for pieces that can't stay where they lie, used again once they are no longer under way."""

    def __init__(self) -> None:
        self._rooms: dict[torch.device, deque[torch.Tensor]] = {}

    def next(self, size: int, device: torch.device) -> torch.Tensor:
        rooms = self._rooms.setdefault(device, deque())
        if len(rooms) <= AHEAD:
            rooms.append(torch.empty(PIECE, dtype=torch.uint8, device=device))
        else:
            rooms.rotate(-1)
        return rooms[-1][:size]
