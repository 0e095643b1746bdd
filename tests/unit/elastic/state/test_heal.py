"""Members of a new group become equal: who is ahead sends its state, and whoever is lost meanwhile spoils nothing."""

from typing import Any

import pytest
import torch
from adaptrain.elastic.collectives.process_group import ElasticProcessGroup, ProcessGroupBroken
from adaptrain.elastic.state.replicated import INCOMPLETE, VERSION_INITIAL, ReplicatedState, tell
from adaptrain.errors import InvalidJob


def state(value: float, version: int, group: int = 0, width: int = 2) -> ReplicatedState:
    model = torch.nn.Linear(width, 1)
    torch.nn.init.constant_(model.weight, value)
    made = ReplicatedState(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    made.counters.version, made.counters.group = version, group
    return made


def weight(of: ReplicatedState) -> float:
    return float(of.tensors()["model.weight"][0, 0])


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((7, 20), (8, 10), 2.0),  # who is ahead
        ((7, 20), (7, 10), 1.0),  # a unit that both applied, in different groups: the later one
        ((0, 0), (3, 10), 2.0),
        ((0, 0), (VERSION_INITIAL, 0), 2.0),
        ((INCOMPLETE, 30), (0, 0), 2.0),
    ],
)
def test_all_take_the_newest_state(pair: Any, first: Any, second: Any, expected: float) -> None:
    one, other = state(1.0, *first), state(2.0, *second)
    healed = [f.result(30) for f in pair(one.heal, lambda group, _: other.heal(group))]
    assert healed == [max(first, second)[0]] * 2
    assert (weight(one), weight(other)) == (expected, expected)
    assert one.counters == other.counters


@pytest.mark.parametrize(
    ("newest", "mine", "left"),
    [(VERSION_INITIAL, 0, 0), (9, 8, 8), (9, 0, INCOMPLETE)],
)
def test_a_source_that_is_lost_spoils_nothing_of_worth(pair: Any, newest: int, mine: int, left: int) -> None:
    ahead, behind = state(1.0, newest), state(2.0, mine)

    def lose(group: ElasticProcessGroup, said: Any) -> None:
        with pytest.raises(ProcessGroupBroken):
            behind.heal(group)

    def send_a_part(group: ElasticProcessGroup) -> None:
        group.gather(ahead._signature[1], 0, newest, 0)
        tell(group, 0, ahead._counters())
        group._sockets.abort()

    for done in pair(send_a_part, lose):
        done.result(30)
    assert behind.counters.version == left
    assert weight(behind) == 2.0 or left == INCOMPLETE


def test_a_data_set_that_shrank_is_named() -> None:
    """In a checkpoint as from another member; who doesn't know how many samples there are takes any number."""
    before, after, unknown = state(1.0, 5), state(2.0, 0), state(3.0, 0)
    before.counters.samples, after.counters.samples = 1000, 900
    unknown.restore(before.capture())
    with pytest.raises(InvalidJob, match="began with 1000 samples, and the data set of this worker has 900"):
        after.restore(before.capture())
