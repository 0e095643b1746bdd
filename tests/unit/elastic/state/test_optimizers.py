"""Every optimizer of torch and timm takes the steps that it takes under plain torch, and a worker that joins goes on
with them; or it is refused before training, with what to do."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm.optim
import torch
import torch.nn.functional as F
from adaptrain.elastic.collectives.process_group import ElasticProcessGroup
from adaptrain.elastic.membership.socket_abort import SocketAbort
from adaptrain.elastic.script.rehearsal import check_optimizer
from adaptrain.elastic.state.replicated import ReplicatedState
from adaptrain.errors import InvalidJob
from torch import nn
from torch.optim import Optimizer

from tests.unit.elastic.collectives.test_group import control

STEPS = 20
Make = Callable[[nn.Module], Optimizer]


class Lookahead(torch.optim.SGD):
    """Slow weights (Zhang et al., 2019), whose state begins as a copy of the parameter, in a subclass of its own."""

    def step(self, closure: Any = None) -> None:
        super().step()
        with torch.no_grad():
            for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
                s = self.state[p]
                s.setdefault("slow", p.clone())
                s["n"] = s.get("n", 0) + 1
                if s["n"] % 5 == 0:
                    s["slow"].lerp_(p, 0.5)
                    p.copy_(s["slow"])


class Both(Optimizer):
    """Two optimizers as one, which keep all state."""

    def __init__(self, one: Optimizer, two: Optimizer) -> None:
        super().__init__([*one.param_groups, *two.param_groups], {})
        self.pair = [one, two]
        self.turn = 0

    def step(self, closure: Any = None) -> None:
        self.turn += 1
        self.pair[self.turn % 2].step()


class Hidden(Optimizer):
    """Its momentum is where nobody finds it."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})
        self.hidden: dict[torch.Tensor, torch.Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            momentum = self.hidden.setdefault(p, torch.zeros_like(p))
            momentum.mul_(0.9).add_(p.grad)
            p.sub_(momentum, alpha=0.1)


class Noisy(torch.optim.SGD):
    """Langevin dynamics."""

    def step(self, closure: Any = None) -> None:
        super().step()
        with torch.no_grad():
            for p in (p for group in self.param_groups for p in group["params"]):
                p.add_(torch.randn_like(p), alpha=0.01)


def of_torch(name: str, **options: Any) -> Make:
    def make(model: nn.Module) -> Optimizer:
        parameters = [p for p in model.parameters() if p.ndim == 2 or name != "Muon"]
        given = {"lr": 0.01, **options}
        return getattr(torch.optim, name)(parameters, **given)  # type: ignore[no-any-return]

    return make


def of_timm(name: str, **options: Any) -> Make:
    return lambda model: timm.optim.create_optimizer_v2(model, opt=name, lr=0.01, weight_decay=0.02, **options)


CASES: dict[str, Make] = {
    **{f"torch {n}": of_torch(n) for n, kind in vars(torch.optim).items() if isinstance(kind, type) and n[0] != "O"},
    # Those of bitsandbytes and APEX need a GPU to be made.
    **{f"timm {n}": of_timm(n) for n in timm.optim.list_optimizers() if not n.startswith(("bnb", "fused"))},
    **{f"timm lookahead_{n}": of_timm(f"lookahead_{n}") for n in ("adamw", "sgd", "madgrad", "lamb", "kron")},
    "kron, deterministic": of_timm("kron", deterministic=True),
    "dampening": of_torch("SGD", momentum=0.9, dampening=0.5),
    "nesterov": of_torch("SGD", momentum=0.9, nesterov=True, weight_decay=0.1),
    "maximize": of_torch("AdamW", maximize=True, amsgrad=True),
    "foreach": of_torch("Adam", foreach=True, weight_decay=0.1),
    "fused": of_torch("Adam", fused=True),
    "tensor learning rate": of_torch("Adam", lr=torch.tensor(0.01, dtype=torch.float64)),
    "accumulator": of_torch("Adagrad", initial_accumulator_value=0.5, lr_decay=0.1),
    "centered": of_torch("RMSprop", centered=True, momentum=0.9),
    "decoupled": of_torch("NAdam", decoupled_weight_decay=True, weight_decay=0.1),
    "two groups": lambda m: torch.optim.SGD([{"params": [p]} for p in m.parameters()], lr=0.02, momentum=0.9),
    "Lookahead of one's own": lambda m: Lookahead(m.parameters(), lr=0.1),
    "two in turn": lambda m: Both(torch.optim.SGD(m[2:].parameters(), 0.1, 0.9), torch.optim.Adam(m[:2].parameters())),
    "hidden state": lambda m: Hidden(m.parameters()),
    "noise": lambda m: Noisy(m.parameters(), lr=0.1),
}  # fmt: skip
REFUSED = {
    "torch LBFGS": "LBFGS can't take a step with gradients that workers summed .*closure.*: use another one",
    "torch SparseAdam": "SparseAdam can't take a step .*: use another one, such as torch.optim.AdamW or SGD",
    "timm adahessian": "Adahessian can't take a step .*: use another one",
    "timm kron": "Kron draws random numbers, .* deterministic=True",
    "timm kronc": "Kron draws random numbers",
    "timm kronw": "Kron draws random numbers",
    "timm lookahead_kron": "Lookahead draws random numbers",
    "hidden state": "Hidden keeps a part of its state where it can't be sent .*: keep it in optimizer.state",
    "noise": "Noisy draws random numbers",
}


@pytest.fixture(autouse=True)
def _eager() -> Iterator[None]:
    """Kron's compiled functions take minutes to compile."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")
    torch.set_num_threads(threads)


def fresh() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 6), nn.LayerNorm(6), nn.Linear(6, 3)).double()


def loss(model: nn.Module, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 1, 4, 4, generator=generator, dtype=torch.float64)
    return F.cross_entropy(model(x), torch.arange(8) % 3)


class Member:
    def __init__(self, make: Make) -> None:
        self.model = fresh()
        self.state = ReplicatedState(self.model, make(self.model), groups=True)
        self.group = ElasticProcessGroup(control(), SocketAbort(), 1, 0, 1, None)

    def step(self, number: int) -> None:
        self.state.gradients.zero()
        self.state.gradients.add(loss(self.model, number))
        self.state.gradients.sum(self.group)
        self.state.step()

    def join(self, other: "Member") -> None:
        captured = other.state.capture()
        self.state.restore({**captured, "counters": json.loads(json.dumps(captured["counters"]))})


@pytest.mark.parametrize("name", CASES)
def test_steps_are_plain_torchs(name: str) -> None:
    make = CASES[name]
    plain = fresh()
    optimizer = make(plain)
    if name in REFUSED:
        with pytest.raises(InvalidJob, match=REFUSED[name]):
            check_optimizer(optimizer, plain)
        return
    before, numbers = repr(vars(optimizer)), torch.get_rng_state()
    check_optimizer(optimizer, plain)
    assert repr(vars(optimizer)) == before
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(map(torch.equal, plain.parameters(), fresh().parameters()))

    first, *joined = [Member(make) for _ in range(3)]
    joins = {1: joined[0], 9: joined[1]}
    members = [first]
    for step in range(STEPS):
        if step in joins:
            joins[step].join(first)
            members.append(joins[step])
        optimizer.zero_grad()
        loss(plain, step).backward()
        optimizer.step()
        for member in members:
            member.step(step)
    for p, *replicas in zip(plain.parameters(), *(m.model.parameters() for m in members), strict=True):
        for replica in replicas:
            torch.testing.assert_close(replica, p, rtol=0, atol=1e-12)
    one, *others = [m.state.tensors() for m in members]
    assert all(torch.equal(t, other[n]) for n, t in one.items() for other in others)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda m: [torch.optim.SGD(m.parameters()), torch.optim.SGD(m.parameters())],
            "is a list, .* a parameter group",
        ),
        (lambda m: None, "is a NoneType"),
        (lambda m: torch.optim.SGD(fresh().parameters()), "a parameter that the model has not"),
        (lambda m: torch.optim.SGD(m.requires_grad_(False).parameters()), "none of the parameters of SGD is trained"),
    ],
)
def test_what_is_no_optimizer_of_the_model_is_refused(make: Callable[[nn.Module], Any], match: str) -> None:
    model = fresh()
    with pytest.raises(InvalidJob, match=match):
        check_optimizer(make(model), model)


def test_a_checkpoint_of_another_optimizer_is_refused() -> None:
    sgd, adam = Member(CASES["nesterov"]), Member(CASES["torch Adam"])
    with pytest.raises(Exception, match="its optimizer is SGD, and here it is Adam"):
        adam.state.room(sgd.state.capture()["counters"])
