"""What a script must not do any more is refused in one sentence, at the start or in the first step; what it may do on
its way is right."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from adaptrain.data.sources import source_of
from adaptrain.elastic import Elastic
from adaptrain.elastic.state.replicated import check_model
from adaptrain.errors import InvalidJob
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = (X.sum(1) > 0).long()
DATA = TensorDataset(X, Y)


def fresh(*more: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), *more, nn.Tanh(), nn.Linear(6, 2)).double()


class Codebook(nn.Module):
    """A running mean under a name of its own, by assignment or in place."""

    def __init__(self, in_place: bool, persistent: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.register_buffer("codes", torch.zeros(6), persistent=persistent)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        moved = torch.lerp(self.get_buffer("codes"), x.detach().mean(0), 0.1)
        if self.in_place:
            self.get_buffer("codes").copy_(moved)
        else:
            self.codes = moved
        return x - self.get_buffer("codes")


class Instances(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm1d(1, track_running_stats=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.unsqueeze(1)).squeeze(1)  # type: ignore[no-any-return]


class Table(nn.Module):
    """A cache that grows, as rotary embeddings have."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.zeros(1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(self.get_buffer("cache")) < len(x):
            self.cache = torch.zeros(len(x), dtype=x.dtype)
        return x


def train(model: nn.Module, after: Callable[[torch.optim.Optimizer], object] = lambda _: None, passes: int = 2) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with Elastic(model, optimizer, DATA, batch_size=16, seed=0) as elastic:
        for _ in elastic.epochs(passes):
            for x, y in elastic:
                elastic.step(F.cross_entropy(model(x), y))
                after(optimizer)


def test_an_optimizer_that_is_still_stepped_is_refused_before_it_steps() -> None:
    once, twice = fresh(), fresh()
    with pytest.raises(InvalidJob, match=r"SGD stepped beside elastic.step.*remove optimizer.step\(\)"):
        train(twice, lambda optimizer: optimizer.step())
    optimizer = torch.optim.SGD(once.parameters(), lr=0.1)
    with Elastic(once, optimizer, DATA, batch_size=16, seed=0) as elastic:
        for _ in elastic.epochs(1):
            for x, y in elastic:
                elastic.step(F.cross_entropy(once(x), y))
                break
    assert all(map(torch.equal, once.parameters(), twice.parameters()))
    optimizer.step()  # training is over


def test_a_second_optimizer_is_refused() -> None:
    model = fresh()
    other = torch.optim.Adam(model[-1].parameters())
    with pytest.raises(InvalidJob, match=r"Adam stepped beside .*: give Elastic one optimizer, with a parameter group"):
        train(model, lambda _: other.step())


def test_parameters_that_are_added_later_are_refused() -> None:
    model, late = fresh(), nn.Parameter(torch.zeros(1))
    with pytest.raises(InvalidJob, match=r"other parameters than when Elastic was made: .* instead of add_param_group"):
        train(model, lambda optimizer: optimizer.add_param_group({"params": [late]}) if late.grad is None else None)


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (Instances, r"1\.norm\.running_mean, a buffer of a InstanceNorm1d"),
        (lambda: Codebook(True, True), r"1\.codes, a buffer of a Codebook"),
        (lambda: Codebook(False, True), r"1\.codes, a buffer of a Codebook"),
        (lambda: Codebook(False, False), r"1\.codes, a buffer of a Codebook"),
    ],
)
def test_a_buffer_that_a_forward_pass_changes_is_refused_in_the_first_step(
    layer: Callable[[], nn.Module], name: str
) -> None:
    model = fresh(layer())
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(InvalidJob, match=f"the forward pass changes {name}, by the samples that a worker alone has: "):
        train(model)
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("old", [False, True])
def test_spectral_normalization_is_plain_torchs(old: bool) -> None:
    normalize = nn.utils.spectral_norm if old else nn.utils.parametrizations.spectral_norm
    model, plain = fresh(), fresh()
    for one in (model, plain):
        torch.manual_seed(1)
        normalize(one[0])
    train(model)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    source = source_of(DATA, 0)
    for epoch in range(2):
        for cursor in (0, 16):
            ids = source.batch(epoch, cursor, 16)
            optimizer.zero_grad()
            F.cross_entropy(plain(X[ids]), Y[ids]).backward()
            optimizer.step()
    for name, t in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], t, rtol=0, atol=1e-12)


def test_a_table_that_grows_is_let_through() -> None:
    train(fresh(Table()))


def test_layers_that_are_thawed_are_trained_as_under_plain_torch() -> None:
    model, plain = fresh(), fresh()
    optimizers = []
    for one in (model, plain):
        one[0].requires_grad_(False)
        optimizers.append(torch.optim.AdamW(one.parameters(), lr=0.01))
    with Elastic(model, optimizers[0], DATA, batch_size=32, seed=0) as elastic:
        for epoch in elastic.epochs(4):
            model[0].requires_grad_(epoch >= 2)
            for x, y in elastic:
                elastic.step(F.cross_entropy(model(x), y))
    source = source_of(DATA, 0)
    for epoch in range(4):
        plain[0].requires_grad_(epoch >= 2)
        ids = source.batch(epoch, 0, 32)
        optimizers[1].zero_grad()
        F.cross_entropy(plain(X[ids]), Y[ids]).backward()
        optimizers[1].step()
    assert not torch.equal(model[0].weight, fresh()[0].weight)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def numbers() -> Iterator[int]:
    yield from range(10)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (DataLoader(DATA, batch_size=8), r"DataLoader, which makes batches: .*loader.dataset.*batch_size=8"),
        (numbers(), "generator, which can be read only once: .*IterableDataset"),
        (iter(DATA), "read only once"),
        (list(DataLoader(DATA, batch_size=8)), "a list of batches, of 8 samples each: .*TensorDataset"),
        (X, "data is a Tensor, and no data set: .*TensorDataset"),
        ({"x": X}, "data is a dict"),
        ([], "the data set is empty"),
        (3, "a int is no data set"),
    ],
)
def test_what_is_no_data_set_is_refused_by_name(data: Any, match: str) -> None:
    with pytest.raises(InvalidJob, match=match):
        source_of(data, 0)


@pytest.mark.parametrize("data", [[(X[0], 1), (X[1], 0)], [(X[0], X[0]), (X[1], X[1])][:1], [1, 2, 3], DATA])
def test_what_is_one_is_taken(data: Any) -> None:
    assert source_of(data, 0).length == len(data)


def test_a_lazy_model_is_refused() -> None:
    with pytest.raises(InvalidJob, match=r"0\.weight has no shape yet: call the model once"):
        check_model(nn.Sequential(nn.LazyLinear(3)))


class Extra(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 1}


def test_state_that_is_no_tensor_is_refused() -> None:
    with pytest.raises(InvalidJob, match=r"0\._extra_state in its state_dict is a dict, .*: keep it in a buffer"):
        check_model(nn.Sequential(Extra(3, 2)))


def test_a_second_network_with_an_optimizer_of_its_own_is_refused_before_the_first_step() -> None:
    """As a GAN's tutorial has it: the discriminator is unknown to Elastic."""
    net, other = fresh(), fresh()
    optimizer, second = (torch.optim.SGD(one.parameters(), lr=0.1) for one in (net, other))
    before = [p.clone() for p in net.parameters()]

    def train() -> None:
        with Elastic(net, optimizer, DATA, batch_size=8) as elastic:
            for inputs, classes in elastic:
                F.cross_entropy(other(inputs), classes).backward()
                second.step()
                elastic.step(F.cross_entropy(net(inputs), classes))

    with pytest.raises(InvalidJob, match=r"SGD trains Linear, which is no part of the model.*parameter group for each"):
        train()
    assert all(map(torch.equal, before, net.parameters()))


def test_a_copy_that_is_made_and_trained_within_a_step_is_nobodys_business() -> None:
    net = fresh()
    with Elastic(net, torch.optim.SGD(net.parameters(), lr=0.1), DATA, batch_size=8) as elastic:
        for _ in elastic.epochs(1):
            for inputs, classes in elastic:
                inner = fresh()
                F.cross_entropy(inner(inputs), classes).backward()
                torch.optim.SGD(inner.parameters(), lr=0.1).step()
                elastic.step(F.cross_entropy(net(inputs), classes))
    assert elastic.steps == 4
