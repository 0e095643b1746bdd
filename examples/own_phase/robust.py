"""A phase of your own: a classifier that learns from noisy inputs (Bishop, 1995: Training with noise is equivalent to
Tikhonov regularization). docs/extending/phase.md explains it."""

import torch
from adaptrain.phases.base import Context, Phase
from torch.nn import functional as F


class Robust(Phase):
    """Minimize the cross-entropy of noisy samples; score clean and noisy ones.

    Args:
        noise: standard deviation, in input units.
    """

    metric = "val/accuracy"
    measured = ("accuracy", "loss", "noisy_accuracy")

    def __init__(self, context: Context, noise: float = 0.3) -> None:
        super().__init__(context)
        if not 0 <= noise <= 10:
            raise ValueError(f"noise is {noise}: it must lie between 0 and 10")
        self._noise = noise

    def prepare(self, x: torch.Tensor, ids: torch.Tensor, epoch: int) -> torch.Tensor:
        x = super().prepare(x, ids, epoch)
        return x + self._noise * self.normal_like(x, ids, epoch)

    def losses(self, model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(x), y, reduction="none")

    def measures(self, model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = model(x)
        # Noise of the input itself: the same for a sample, whatever worker scores it.
        noise = torch.frac(1e4 * torch.sin(1e4 * x + torch.arange(x[0].numel()).view_as(x[0])))
        return {
            "accuracy": logits.argmax(1) == y,
            "loss": F.cross_entropy(logits, y, reduction="none"),
            "noisy_accuracy": model(x + self._noise * noise).argmax(1) == y,
        }
