"""What a script trains beside what workers share is found among the live objects, and refused."""

import copy

import pytest
import torch
from adaptrain.elastic.script.outside import Outside
from adaptrain.errors import InvalidJob
from torch import nn
from torch.optim import SGD
from torch.optim.swa_utils import AveragedModel


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def test_an_average_that_is_no_part_of_the_model_is_refused(net: nn.Module) -> None:
    average = AveragedModel(net)
    with pytest.raises(InvalidJob, match="AveragedModel averages weights"):
        Outside(net, SGD(net.parameters(), lr=0.1)).look()
    Outside(nn.ModuleDict({"net": net, "average": average}), SGD(net.parameters(), lr=0.1)).look()


def test_a_second_optimizer_of_the_model_is_refused(net: nn.Module) -> None:
    first, second = SGD(net[0].parameters(), lr=0.1), SGD(net[2].parameters(), lr=0.1)
    with pytest.raises(InvalidJob, match="SGD trains a part of the model"):
        Outside(net, first).look()
    both = SGD(net.parameters(), lr=0.1)  # an optimizer around another one has parts of its parameters in two
    Outside(net, both).look()
    assert second.param_groups


def test_a_module_that_changes_with_the_steps_is_refused(net: nn.Module) -> None:
    other = copy.deepcopy(net)
    outside = Outside(net, SGD(net.parameters(), lr=0.1))
    outside.look()
    with torch.no_grad():
        other[0].bias.add_(1)
    with pytest.raises(InvalidJob, match="Linear changes with each step and is no part of the model"):
        outside.look()


def test_what_stays_as_it_is_or_shares_weights_is_nobodys_business(net: nn.Module) -> None:
    teacher, tied = copy.deepcopy(net).eval(), nn.Linear(7, 5)
    tied.weight = net[0].weight
    outside = Outside(net, SGD(net.parameters(), lr=0.1))
    outside.look()
    with torch.no_grad():
        net[0].weight.add_(1)
        teacher(torch.randn(2, 7))
    outside.look()
    outside.look()
