"""What the elastic loop knows of a script that trains by itself."""

import math
from typing import Any

from adaptrain.data.sources import Source
from adaptrain.elastic.checkpoint.manager import Checkpoints
from adaptrain.elastic.collectives.process_group import ElasticProcessGroup
from adaptrain.elastic.step import ElasticStep


class ScriptTask:
    """The loop's task: how far it is, what it reports."""

    def __init__(self, step: ElasticStep, batch_size: int, source: Source) -> None:
        self.step = step
        self.state = step.state
        self.batch_size = batch_size
        self.epochs: int | None = None
        self._source = source

    @property
    def finished(self) -> bool:
        return bool(self.state.counters.stopped)

    @property
    def remaining_steps(self) -> int | None:
        c, length = self.state.counters, self._source.length
        if self.epochs is None or length is None:
            return None
        return max(0, math.ceil(((self.epochs - c.epoch) * length - c.cursor) / self.batch_size))

    def use(self, checkpoints: Checkpoints | None) -> None:
        self.step.non_finite.checkpoints = checkpoints

    def reset(self) -> None:
        raise RuntimeError("whoever sent the initial weights was lost meanwhile: this worker starts again")

    def begin(self, group: ElasticProcessGroup) -> None:
        """The script's own model is what it starts from."""

    def report(self) -> dict[str, Any]:
        c = self.state.counters
        return {
            "step": c.step,
            "data_epoch": c.epoch,
            "loss": self.step.loss,
            "learning_rate": self.state.learning_rate,
            "batch_size": self.batch_size,
            "metrics": c.metrics,
            "best": c.best,
            "skipped_steps": c.skipped,
        }
