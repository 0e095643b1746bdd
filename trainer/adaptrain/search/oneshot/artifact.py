"""What a run leaves on its way, beside the study: its state after some passes, in one file that names its digest."""

import hashlib
import io
import logging
import os
import re
import time
import uuid
from pathlib import Path
from typing import Any

import torch
from adaptrain_api.contracts.coordinator_api import TrialWeights

from adaptrain.search.oneshot.base import Run

FOLDER = "supernet"
_FILE = re.compile(r"([0-9]+)-([0-9a-f]{16})\.pt")

RETRY_SECONDS, MOST_RETRY_SECONDS = 0.5, 10.0
WAIT_SECONDS = 600.0
"""So long what can't be read is waited for: to begin anew would give up what was trained."""

log = logging.getLogger(__name__)


class Artifact:
    """
    Args:
        study: the folder of the study.
    """

    def __init__(self, study: Path, run: Run) -> None:
        self._folder, self._run = study / FOLDER, run
        made = [run.method, type(run.space), run.space.size, run.space.dimensions, run.seed]
        of = hashlib.sha256(repr(made).encode())
        for part in run.train:
            of.update(part.cpu().contiguous().numpy().data)
        self._of = of.hexdigest()
        """What has to be equal for a run to go on from another's state."""

    def resume(self) -> None:
        """Have the run go on from the most passes that are here of one like it. A file that isn't what was written is
        passed over, and the log tells of it; one that can't be read now is waited for.

        Raises:
            OSError: it can't be read for ``WAIT_SECONDS``.
        """
        began, pause = time.monotonic(), RETRY_SECONDS
        while True:
            try:
                return self._resume()
            except OSError as error:
                if time.monotonic() - began > WAIT_SECONDS:
                    raise
                log.warning("the network's files can't be read: %s; it is tried again", error)
                time.sleep(pause)
                pause = min(MOST_RETRY_SECONDS, 2 * pause)

    def _resume(self) -> None:
        for passes, digest, file in sorted(self._files(), reverse=True):
            try:
                data = file.read_bytes()
            except FileNotFoundError:  # another evaluator has removed it, which has gone on
                continue
            if not hashlib.sha256(data).hexdigest().startswith(digest):
                log.warning("%s is not what was written: it is passed over", file)
                continue
            try:
                # Nothing but tensors, numbers and plain containers.
                state = torch.load(io.BytesIO(data), map_location=self._run.train[0].device, weights_only=True)
                of = state["of"]
            except Exception as error:
                log.warning("%s holds no state of a network (%s): it is passed over", file, type(error).__name__)
                continue
            if of != self._of:
                log.warning("%s is of a search with other arguments or other data: it is passed over", file)
                continue
            self._run.restore(state)
            log.info("the network goes on after pass %d, from %s", passes, file)
            return

    def write(self) -> TrialWeights:
        """Keep the run's state as it is now, and remove those of fewer passes.

        Raises:
            OSError: storage refused.
        """
        buffer = io.BytesIO()
        torch.save({"of": self._of, **self._run.capture()}, buffer)
        data = buffer.getvalue()
        digest = hashlib.sha256(data).hexdigest()
        self._folder.mkdir(parents=True, exist_ok=True)
        name, partial = f"{self._run.passes}-{digest[:16]}.pt", self._folder / f".{uuid.uuid4().hex}"
        try:
            with partial.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            partial.rename(self._folder / name)
        finally:
            partial.unlink(missing_ok=True)
        for passes, _, file in self._files():
            if passes < self._run.passes:  # one with more is of an evaluator that has overtaken us
                file.unlink(missing_ok=True)
        return TrialWeights(path=f"{FOLDER}/{name}", sha256=digest)

    def _files(self) -> list[tuple[int, str, Path]]:
        """Passes, the beginning of the digest, and where."""
        try:
            matches: list[tuple[Any, Path]] = [(_FILE.fullmatch(path.name), path) for path in self._folder.iterdir()]
        except FileNotFoundError:
            return []
        return [(int(match[1]), match[2], path) for match, path in matches if match is not None]
