"""Supervised training: minimize cross-entropy over labelled samples."""

import torch
import torch.nn.functional as F

from adaptrain.phases.base import Phase


class Supervised(Phase):
    """A classifier, whose best weights are those of the highest accuracy."""

    metric = "val/accuracy"
    measured = ("accuracy", "loss")

    def losses(self, model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self._logits(model, x), y, reduction="none")

    def measures(self, model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self._logits(model, x)
        return {"accuracy": logits.argmax(1) == y, "loss": F.cross_entropy(logits, y, reduction="none")}

    def _logits(self, model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        return model(x).to(x.dtype)  # type: ignore[no-any-return]
