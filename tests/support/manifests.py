"""Parts of manifests that more than one kind of test needs."""

from typing import Any


def small_training(epochs: int = 2) -> dict[str, Any]:
    """A job's model, data and one phase."""
    phase = {
        "name": "train",
        "type": "supervised",
        "optimizer": {"learningRate": 0.001},
        "batch": {"size": 64},
        "stop": {"epochs": epochs},
    }
    return {"model": {"name": "mlp"}, "data": {"name": "digits"}, "phases": [phase]}
