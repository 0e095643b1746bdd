"""Searches in a supernet: what it computes, DARTS's gradient beside its equations, the same for a seed."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from adaptrain.data.digits import digits
from adaptrain.search.algorithms.oneshot import METHODS, DartsMethod
from adaptrain.search.evaluation.supernet_trial import RUNS
from adaptrain.search.oneshot.base import Found, Run, Samples, batches, halves, loss, search, seeded
from adaptrain.search.oneshot.darts import alpha_gradient, gumbel, mixture, through
from adaptrain.search.oneshot.enas import SPAN, Controller
from adaptrain.search.oneshot.standalone import finals
from adaptrain.search.oneshot.supernet import Supernet, supernet
from adaptrain.search.spaces.cells import Darts
from adaptrain.search.spaces.nasbench201 import NONE, NasBench201

SMALL: list[Any] = [NasBench201(cells=1, width=4), Darts(nodes=2, cells=3, width=2)]


@pytest.fixture(scope="module")
def samples() -> Samples:
    return digits().train.fetch(torch.arange(0, 1000, 50))


class Toy(Supernet):
    """Logits (w₀ · softmax(α)₀ x, w₁ · softmax(α)₁ x): gradients can be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([0.5, -0.3], dtype=torch.float64))

    def forward(self, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return x[:, None] * self.w * weights[0, 0]


@pytest.mark.parametrize("space", SMALL, ids=lambda space: type(space).__name__)
def test_a_supernet_derives_the_architecture_that_it_weights(space: Any) -> None:
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    net = supernet(space, (1, 8, 8), 10)
    x = torch.rand(4, 1, 8, 8)
    for one in (space.random(rng) for _ in range(10)):
        assert net.derive(net.weights(one)) == one
    weights = net.weights(space.random(rng))
    assert not torch.equal(net(x, weights), net(x, net.weights(space.random(rng))))
    mixed = torch.full(net.shape, 0.5, requires_grad=True)
    net(x, mixed).square().sum().backward()  # type: ignore[no-untyped-call]
    assert mixed.grad is not None
    none = net.operations.index("none")
    assert (mixed.grad[..., none] == 0).all()
    assert (mixed.grad.abs().sum((0, 1)) > 0).sum() == len(net.operations) - 1


@pytest.mark.parametrize("ahead", [0.0, 0.3])
def test_the_gradient_of_the_logits_looks_a_step_ahead(ahead: float) -> None:
    """Beside autograd through the step itself (equation 6)."""
    torch.manual_seed(0)
    net = Toy()
    alpha = torch.tensor([[[0.2, -0.1]]], dtype=torch.float64, requires_grad=True)
    train, compare = ((torch.randn(8, dtype=torch.float64), torch.randint(0, 2, (8,))) for _ in range(2))
    before = net.w.detach().clone()
    ours = alpha_gradient(net, alpha, train, compare, ahead, mixture)
    torch.testing.assert_close(net.w.detach(), before)
    slope = torch.autograd.grad(loss(net, train, alpha.softmax(2)), net.w, create_graph=True)[0]
    stepped = torch.nn.functional.cross_entropy(
        compare[0][:, None] * (net.w - ahead * slope) * alpha.softmax(2)[0, 0], compare[1]
    )
    exact = torch.autograd.grad(stepped, alpha)[0]
    torch.testing.assert_close(ours, exact, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("space", SMALL, ids=lambda space: type(space).__name__)
def test_a_single_path_is_drawn_by_the_shares_and_learns_as_the_mixture(space: Any) -> None:
    torch.manual_seed(0)
    net = supernet(space, (1, 8, 8), 10)
    alpha = torch.zeros(net.shape, requires_grad=True)
    with torch.no_grad():
        alpha[..., 1] += 2.0
    drawn = []
    for _ in range(200):
        noise = gumbel(alpha)
        weights = through(net, noise)(alpha)
        cell = net.derive(weights.detach())
        torch.testing.assert_close(weights.detach(), net.weights(cell))
        drawn.append(weights.detach() > 0)
        slopes = torch.rand(net.shape)
        own = torch.autograd.grad((slopes * weights).sum(), alpha)[0]
        # The softmax's own gradient, of the operations that were drawn.
        soft = torch.where(torch.arange(net.shape[2]) == net.operations.index("none"), -1e6, alpha) + noise
        expected = torch.autograd.grad((slopes * net.weights(cell) * soft.softmax(2)).sum(), alpha)[0]
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-6)
    often = torch.stack(drawn).double().mean(0)
    assert (often[..., net.operations.index("none")] == 0).all()
    if isinstance(space, NasBench201):
        others = len(net.operations) - 2
        share = np.exp(2.0) / (np.exp(2.0) + others)
        assert (often[0, :, 1] - share).abs().max() < 4 * (share * (1 - share) / len(drawn)) ** 0.5


@pytest.mark.parametrize(("single_path", "collapses"), [(False, True), (True, False)])
def test_auxiliary_skips_are_there_where_the_network_would_collapse(single_path: bool, collapses: bool) -> None:
    assert DartsMethod(single_path=single_path).auxiliary is collapses
    assert DartsMethod(single_path=single_path, auxiliary=not collapses).auxiliary is not collapses


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "darts": ("darts", {}),
    "a mixture, second order": ("darts", {"single_path": False, "second_order": True}),
    "enas": ("enas", {"controller_steps": 2}),
    "spos": ("spos", {"evaluations": 25}),
}


def run(name: str, space: Any, samples: Samples, seed: int, epochs: int = 1) -> Run:
    method, more = VARIANTS[name]
    return RUNS[method](space, samples, 10, seed, METHODS[method](epochs=epochs, **more))


@pytest.mark.parametrize("space", SMALL, ids=lambda space: type(space).__name__)
@pytest.mark.parametrize("name", VARIANTS)
def test_a_search_is_the_same_for_a_seed(name: str, space: Any, samples: Samples) -> None:
    state = torch.get_rng_state()
    one, again, other = (search(run(name, space, samples, seed)) for seed in (1, 1, 2))
    assert one == again != other
    assert torch.equal(torch.get_rng_state(), state)
    assert one.ranking[0][0] == one.architecture
    assert [score for _, score in one.ranking] == sorted((score for _, score in one.ranking), reverse=True)
    assert all(space.is_valid(architecture) for architecture, _ in one.ranking)
    if VARIANTS[name][0] == "darts" and isinstance(space, NasBench201):
        assert NONE not in (*one.architecture, *other.architecture)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_search_that_is_continued_finds_what_it_would_have_found(name: str, samples: Samples) -> None:
    """By another process, which has nothing but what was kept."""
    whole, begun, continued = (run(name, SMALL[0], samples, 1, epochs=4) for _ in range(3))
    for _ in range(2):
        begun.advance()
    kept = io.BytesIO()
    torch.save(begun.capture(), kept)
    kept.seek(0)
    continued.restore(torch.load(kept, weights_only=True))
    assert continued.passes == 2
    assert search(continued) == search(whole) != begun.found()


def test_too_few_samples_are_refused(samples: Samples) -> None:
    with pytest.raises(ValueError, match="needs at least 4 training samples, not 3"):
        run("spos", SMALL[0], (samples[0][:3], samples[1][:3]), 0)


def test_halves_are_alike_and_batches_too(samples: Samples) -> None:
    with seeded(0, "test"):
        one, other = halves(samples)
        sizes = [len(y) for _, y in batches((torch.arange(50), torch.arange(50)), 16)]
        seen = torch.cat([x for x, _ in batches((torch.arange(50), torch.arange(50)), 16)])
    counts = [torch.bincount(half[1], minlength=10) for half in (one, other)]
    assert (counts[0] - counts[1]).abs().max() <= 1
    assert sorted(torch.cat([one[0], other[0]]).sum((1, 2, 3)).tolist()) == sorted(samples[0].sum((1, 2, 3)).tolist())
    assert sizes == [13, 13, 12, 12], "none of two samples, over which nothing can be normalized"
    assert sorted(seen.tolist()) == list(range(50))


def test_a_controller_never_settles_for_good() -> None:
    """Whatever it has learned, the best choice is at most e^5 times as likely as the worst."""
    torch.manual_seed(0)
    controller = Controller(SMALL[0])
    with torch.no_grad():
        for parameter in controller.parameters():
            parameter *= 1000
    _, log, entropy = controller()
    assert float(entropy.detach()) > 0
    least = torch.tensor([-SPAN, *[SPAN] * 4]).log_softmax(0)[0]
    assert float(log.detach()) >= 6 * float(least)


def test_finals_are_won_by_what_learns(samples: Samples) -> None:
    none, as_none, conv = (0,) * 6, (3, 0, 0, 0, 0, 0), (3,) * 6
    state = torch.get_rng_state()
    ranking: list[tuple[tuple[int, ...], float]] = [(none, 0.9), (as_none, 0.8), (conv, 0.5), ((2,) * 6, 0.4)]
    one, again = (finals(SMALL[0], Found(none, ranking), samples, 10, 0, among=2, epochs=10) for _ in range(2))
    assert one == again
    assert one.architecture == conv
    assert [architecture for architecture, _ in one.ranking] == [conv, none]
    assert one.ranking[1][1] == pytest.approx(-2.3, abs=0.4), "a cell of nothing says the same of all"
    assert torch.equal(torch.get_rng_state(), state)


def test_the_worse_half_leaves_the_finals_after_each_round(samples: Samples) -> None:
    none, pools, conv = (0,) * 6, (4,) * 6, (3,) * 6
    ranking: list[tuple[tuple[int, ...], float]] = [(none, 0.9), (pools, 0.6), (conv, 0.5)]
    found = finals(SMALL[0], Found(none, ranking), samples, 10, 0, among=3, epochs=10)
    assert [architecture for architecture, _ in found.ranking] == [conv, pools]


def test_a_controller_that_has_settled_is_not_all_there_is(samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    """On cells of pools: half of the cells that train the shared weights are others, and many that are ranked."""
    enas = run("enas", SMALL[0], samples, 0, epochs=20)
    controller = enas.parts["controller"]
    assert isinstance(controller, Controller)
    (logits,) = controller.logits.values()
    with torch.no_grad():
        logits.weight.zero_()
        logits.bias.copy_(torch.tensor([-100.0, -100.0, -100.0, -100.0, 100.0]))
    drawn: list[tuple[int, ...]] = []

    def step(batch: Samples, weights: torch.Tensor) -> float:
        drawn.append(tuple(weights[0].argmax(1).tolist()))
        enas.sgd.step()  # of no gradient: the schedule wants one
        return 0.0

    monkeypatch.setattr(enas, "step", step)
    for _ in range(20):
        enas.train_drawn(controller.draw)
    settled = drawn.count((4,) * 6) / len(drawn)
    drawn.clear()
    for _ in range(20):
        enas.advance()
    assert settled > 0.7
    assert 0.2 < drawn.count((4,) * 6) / len(drawn) < 0.6
    assert len(enas.found().ranking) > 40


def test_auxiliary_skips_count_only_while_they_are_set() -> None:
    with seeded(0, "test"):
        net = supernet(SMALL[0], (1, 8, 8), 10)
    x, nothing = torch.rand(4, 1, 8, 8), torch.zeros(net.shape)
    bare = net(x, nothing)
    net.set_auxiliary(1.0)
    beside = net(x, nothing)
    assert not torch.allclose(bare, beside)
    net.set_auxiliary(0.0)
    assert torch.equal(net(x, nothing), bare)
