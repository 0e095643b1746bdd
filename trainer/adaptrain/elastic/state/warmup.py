"""A first pass that a worker takes by itself before it joins, so that the others don't wait for a compiler, for kernels
or for caches. It leaves no trace: what is trained is the same, bit by bit, with and without it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from adaptrain.data.rng import GlobalRandom
from adaptrain.elastic.state.replicated import ReplicatedState

PLAIN = (bool, int, float, str, type(None))


@contextmanager
def no_trace(state: ReplicatedState) -> Iterator[None]:
    """Around a forward and backward pass of a state that is as it was built: it is the same afterwards, and so are
    torch's, Python's and NumPy's generators.

    That is parameters and buffers, gradients, and tensors, numbers and texts that modules keep in other attributes.
    """
    model = state.model
    kept = [(vars(m), {k: v for k, v in vars(m).items() if isinstance(v, PLAIN)}) for m in model.modules()]
    held: list[dict[str, Any]] = [place for m in model.modules() for place in (m._buffers, vars(m))]
    loose = [(place, {key: (t, t.detach().clone()) for key, t in place.items() if _loose(t)}) for place in held]
    devices = [state.device] if state.device.type == "cuda" else []
    try:
        with GlobalRandom(), torch.random.fork_rng(devices):
            yield
    finally:
        for attributes, plain in kept:
            attributes.update(plain)
        with torch.no_grad():
            for place, tensors in loose:
                for key, (t, before) in tensors.items():
                    place[key] = t
                    t.copy_(before)
            # Also what changes its parameters in a forward pass: the best weights of a fresh state are its own.
            model.load_state_dict(state.best)
        state.gradients.zero()


def _loose(value: object) -> bool:
    """Whether a module keeps a tensor beside its parameters."""
    return isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter)
