"""Which samples a step takes: a pure function of (seed, epoch, cursor, batch size).

Nothing is leased to a worker, so nothing can be lost with one; the cursor is a number in the replicated state.
"""

import torch

from adaptrain.data.rng import derive


class Sampler:
    """Permutations of ``size`` samples, a fresh one for each epoch."""

    def __init__(self, size: int, seed: int) -> None:
        if size < 1:
            raise ValueError("the training set is empty")
        self.size = size
        self._seed = seed
        self._cached: tuple[int, torch.Tensor] | None = None

    def batch(self, epoch: int, cursor: int, batch_size: int) -> torch.Tensor:
        """Ids of the global batch that starts at ``cursor``: int64 [≤ batch_size]; the epoch's last may be smaller."""
        if self._cached is None or self._cached[0] != epoch:
            generator = torch.Generator().manual_seed(derive(self._seed, "order", epoch))
            self._cached = epoch, torch.randperm(self.size, generator=generator)
        return self._cached[1][cursor : cursor + batch_size]

    def ended(self, epoch: int, cursor: int) -> bool:
        """Whether the epoch is complete at a place."""
        return cursor >= self.size


def share(ids: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    """What one of ``size`` members computes of a global batch; may be empty."""
    return ids[rank::size]
