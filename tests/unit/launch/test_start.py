"""What a worker imports until its first step: all of it is paid for by each worker that joins."""

import subprocess
import sys

import pytest
import torch
from adaptrain.phases.optimizers import without_compiler

TRAINED = """
import sys, torch
import adaptrain.launch.train
from adaptrain.elastic.state.replicated import ReplicatedState
from adaptrain.phases.optimizers import build_optimizer
from adaptrain_api.phases.phase import Optimizer

model = torch.nn.Linear(2, 2)
state = ReplicatedState(model, build_optimizer(Optimizer(name="NAME", learningRate=0.1), model))
state.step()
print(sorted(name for name in ("torch._dynamo", "torch.distributed.tensor", "sklearn", "sympy") if name in sys.modules))
"""


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_worker_does_without_what_takes_long_to_import(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRAINED.replace("NAME", name)], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_an_optimizer_without_the_compiler_takes_the_same_steps(kind: type[torch.optim.Optimizer]) -> None:
    ended = []
    for made in (kind, without_compiler(kind)):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        optimizer = made(model.parameters(), lr=0.1, weight_decay=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.ones(4, 3)).square().sum().backward()
            optimizer.step()
        assert isinstance(optimizer, kind)
        ended.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ended, strict=True))


def test_the_package_names_its_script_interface_and_imports_no_torch_for_it() -> None:
    program = (
        "import sys, adaptrain; print('torch' in sys.modules); from adaptrain import Elastic; print(Elastic.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["False", "Elastic"]
