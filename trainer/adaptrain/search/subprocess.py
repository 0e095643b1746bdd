"""An algorithm in a process of its own: one that takes torch, or thinks for long, leaves the coordinator small.

The process holds nothing that the history does not tell: when it dies, another one is told everything again, and asks
the same. Started as ``python -m adaptrain.search.subprocess``, it answers each line of JSON with one.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from adaptrain_api.base import ALLOWED
from adaptrain_api.search.job import ArchitectureSearchSpec
from adaptrain_api.training.job import dump
from adaptrain_api.training.workers import PRIVILEGES

from adaptrain.errors import InvalidJob
from adaptrain.search.algorithms.base import Proposal
from adaptrain.search.algorithms.registry import make_algorithm
from adaptrain.search.spaces.base import Architecture, Space
from adaptrain.search.spaces.registry import make_space
from adaptrain.search.study.study import as_architecture

log = logging.getLogger(__name__)

MOST_DEATHS = 3
"""During one ask."""


class SubprocessSearcher:
    """What is asked and told as any ``Searcher`` is. ``ask`` may be called in another thread than ``tell``.

    The process ends when the one that asks it ends.

    Raises:
        InvalidJob: the algorithm doesn't take its arguments, or not this space.
    """

    def __init__(self, spec: ArchitectureSearchSpec, space: Space) -> None:
        self.space = space
        self._spec = spec
        self._told: list[tuple[Architecture, tuple[float, ...], float]] = []
        self._heard = 0
        """How much of it the process was told."""
        self._process = self._start()

    def ask(self, number: int, pending: Sequence[Architecture] = ()) -> Proposal:
        """What to try next; see ``Algorithm.ask``.

        Raises:
            RuntimeError: the process dies whenever it is asked.
        """
        for _ in range(MOST_DEATHS):
            news = self._told[self._heard :]
            try:
                answer = _say(self._process, {"number": number, "pending": list(pending), "told": news})
            except (OSError, EOFError):
                log.warning("the algorithm's process has ended with %s: another one is started", self._process.wait())
                self._process = self._start()
                self._heard = 0
                continue
            self._heard += len(news)
            return Proposal(as_architecture(answer["architecture"]), answer["why"])
        raise RuntimeError(f"algorithm {self._spec.algorithm.name} has died {MOST_DEATHS} times in a row: see the log")

    def tell(self, architecture: Architecture, values: tuple[float, ...], violation: float = 0.0) -> None:
        """How good one is; the process learns it when it is asked."""
        self._told.append((architecture, values, violation))

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            answer = _say(process, dump(self._spec))
        except (OSError, EOFError) as error:
            raise RuntimeError(f"the algorithm's process ended with {process.wait()} when it was started") from error
        if "invalid" in answer:
            raise InvalidJob(answer["invalid"])
        return process


def _say(process: subprocess.Popen[str], said: Any) -> dict[str, Any]:
    """
    Raises:
        OSError, EOFError: the process has ended.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    print(json.dumps(said), file=process.stdin, flush=True)
    if not (line := process.stdout.readline()).endswith("\n"):
        raise EOFError
    answer: dict[str, Any] = json.loads(line)
    return answer


def main() -> None:
    """The process: the first line is a search's spec, the others are what is told and asked."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer

    def answer(said: dict[str, Any]) -> None:
        print(json.dumps(said), file=answers, flush=True)

    ALLOWED.update(PRIVILEGES)  # whoever began this has checked the search
    spec = ArchitectureSearchSpec.model_validate_json(sys.stdin.readline())
    try:
        algorithm = make_algorithm(spec, make_space(spec.space))
    except InvalidJob as error:
        answer({"invalid": str(error)})
        return
    answer({})
    for line in sys.stdin:
        asked = json.loads(line)
        for architecture, values, violation in asked["told"]:
            algorithm.tell(as_architecture(architecture), tuple(values), violation)
        proposal = algorithm.ask(asked["number"], [as_architecture(one) for one in asked["pending"]])
        answer({"architecture": proposal.architecture, "why": proposal.why})


if __name__ == "__main__":
    main()
