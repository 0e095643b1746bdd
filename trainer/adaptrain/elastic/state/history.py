"""The training's history: a row for each applied step, and one for each step after which the model was evaluated.

It is a part of the replicated state: who joins gets it, and each checkpoint holds that of its own steps, so that it
tells each of them once, whatever was lost when. Rows are lines of JSON; a step's has ``batch_size``, an evaluation's
has metrics instead.
"""

import json
import math
import re
from typing import Any

from adaptrain_api.contracts.coordinator_api import foremost

FILE = "metrics.jsonl"
"""In each checkpoint's folder; and that of the newest one beside them."""
MOST_BYTES = 1 << 25
"""Of a history: about 250,000 steps. When there are more, every second row of the older half is left out."""
METRICS_BYTES, ROW_BYTES = 12 * 1024, 16 * 1024
"""Of the metrics of an evaluation, and of a whole row."""
FIELDS = ("step", "data_epoch", "loss", "learning_rate", "batch_size", "skipped_steps")
"""Of a step. A metric of such a name is called ``metrics/<name>``."""
_STEP = re.compile(r'\{"step": (\d{1,15}), ')
_OF_STEP = '"batch_size": '


class History:
    """Rows in the order of their steps.

    Attributes:
        recording: whether rows are added: only if there are checkpoints.
    """

    def __init__(self) -> None:
        self.recording = False
        self._lines: list[str] = []
        self._bytes = 0

    def step(self, step: int, epoch: int, loss: float, learning_rate: float, batch_size: int, skipped: int) -> None:
        """A step was applied.

        Args:
            step: how many there are with this one.
            epoch: passes over the data that were complete before it.
            loss: of the global batch.
            batch_size: samples of the global batch.
            skipped: batches that were passed over so far, since their loss or gradient was not finite.
        """
        if self.recording:
            values = step, epoch, _finite(loss), _finite(learning_rate), batch_size, skipped
            self._append(json.dumps(dict(zip(FIELDS, values, strict=True))))

    def evaluated(self, step: int, epoch: int, metrics: dict[str, float]) -> None:
        """The model was evaluated after that step. Once more after the same one adds to that row, or replaces it."""
        if not self.recording or not metrics:
            return
        known: dict[str, float] = {}
        if self._lines and _step_of(last := self._lines[-1]) == step and _OF_STEP not in last:
            known = {name: value for name, value in json.loads(last).items() if name not in FIELDS}
            self._drop_last()
        named = {f"metrics/{name}" if name in FIELDS else name: value for name, value in metrics.items()}
        kept = foremost(known | named, METRICS_BYTES)
        self._append(
            json.dumps({"step": step, "data_epoch": epoch, **{name: _finite(value) for name, value in kept.items()}})
        )

    def text(self, since: int = 0) -> str:
        """The rows of that step and later ones, as they are in a file."""
        at = len(self._lines) if since > 0 else 0
        while at and _step_of(self._lines[at - 1]) >= since:
            at -= 1
        return "\n".join([*self._lines[at:], ""])

    def take(self, text: Any, step: int) -> None:
        """Take over another state's rows, which is at that step. The present ones of steps before them stay; all of
        them up to that step, if it has none, as those of an older release."""
        rows = text.splitlines() if isinstance(text, str) else []
        until = _step_of(rows[0]) if rows else step + 1
        while self._lines and _step_of(self._lines[-1]) >= until:
            self._drop_last()
        self._lines += rows
        self._bytes += sum(len(line) + 1 for line in rows)
        self._bound()

    def _append(self, line: str) -> None:
        self._lines.append(line)
        self._bytes += len(line) + 1
        self._bound()

    def _drop_last(self) -> None:
        self._bytes -= len(self._lines.pop()) + 1

    def _bound(self) -> None:
        while self._bytes > MOST_BYTES and len(self._lines) > 1:
            half = len(self._lines) // 2
            older = self._lines[:half]
            # Steps first: evaluations are few, unless a script reports after each step.
            kept = [line for number, line in enumerate(older) if number % 2 == 0 or _OF_STEP not in line]
            if len(kept) == half:
                kept = older[1::2]
            self._lines[:half] = kept
            self._bytes = sum(len(line) + 1 for line in self._lines)


def check(text: str, step: int) -> None:
    """Make sure that a text holds the rows of a training that is at that step.

    Raises:
        ValueError: it does not.
    """
    before, of_step = 0, False
    if text and not text.endswith("\n"):
        raise ValueError("its last line has no end")
    for number, line in enumerate(text.split("\n")[:-1], 1):
        found = _STEP.match(line)
        if found is None or len(line) > ROW_BYTES or not isinstance(json.loads(line), dict):
            raise ValueError(f"line {number} is no row of a step or an evaluation")
        at, is_step = int(found[1]), _OF_STEP in line
        if not before <= at <= step or (at == before and is_step and of_step):
            raise ValueError(f"line {number} is of step {at}, behind step {before}, in a training at step {step}")
        before, of_step = at, is_step


def _step_of(line: str) -> int:
    found = _STEP.match(line)
    return int(found[1]) if found is not None else 0


def _finite(value: float) -> float | None:
    """JSON has no other numbers."""
    return float(value) if math.isfinite(value) else None
