"""Algorithms in a process of their own ask what they would ask in ours, whatever becomes of the process."""

import json
import math
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from adaptrain.errors import InvalidJob
from adaptrain.search.algorithms.registry import make_algorithm
from adaptrain.search.spaces.registry import make_space
from adaptrain.search.subprocess import SubprocessSearcher
from adaptrain_api.search.job import HEAVY, ArchitectureSearchSpec

from tests.unit.search.test_search_dispatch import spec

PREDICTOR = {"space": {"name": "nasbench201"}, "algorithm": {"name": "predictor"}}


def wanted(name: str) -> ArchitectureSearchSpec:
    return spec(seed=5, **(PREDICTOR if name == "predictor" else {"algorithm": {"name": name}}))


def asked(searcher: Any, trials: int) -> Iterator[Any]:
    """What it asks for; each third one fails, and one is always pending."""
    pending: list[Any] = []
    for number in range(trials):
        proposal = searcher.ask(number, pending)
        yield proposal
        pending.append(proposal.architecture)
        if len(pending) > 1:
            one = pending.pop(0)
            searcher.tell(one, (math.nan if number % 3 == 2 else float(sum(map(hash, one)) % 7),), 0.0)


@pytest.mark.parametrize("name", HEAVY)
def test_it_asks_the_same_whatever_is_killed(name: str) -> None:
    one = wanted(name)
    space = make_space(one.space)
    expected = list(asked(make_algorithm(one, space), 15))
    apart, found = SubprocessSearcher(one, space), []
    for number, proposal in enumerate(asked(apart, 15)):
        found.append(proposal)
        if number in (4, 12):
            os.kill(apart._process.pid, signal.SIGKILL)
    apart._process.communicate(timeout=20)  # it hears no more, and ends
    assert apart._process.returncode == 0
    assert [one.architecture for one in found] == [one.architecture for one in expected]
    assert [one.why for one in found] == json.loads(json.dumps([one.why for one in expected]))


def test_wrong_arguments_are_told_at_once() -> None:
    one = spec(algorithm={"name": "gp", "args": {"nonsense": 1}})
    with pytest.raises(InvalidJob, match="nonsense"):
        SubprocessSearcher(one, make_space(one.space))
