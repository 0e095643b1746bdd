"""What a model costs, before it is trained."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@torch.no_grad()
def count_flops(model: nn.Module, sample: torch.Tensor) -> int:
    """Floating-point operations of one forward pass over one ``sample`` [*shape]: of convolutions and matrix products,
    a multiplication and an addition each."""
    training = model.training
    model.eval()
    like = next(model.parameters())
    with FlopCounterMode(display=False) as counter:
        model(sample.unsqueeze(0).to(like.device, like.dtype))
    model.train(training)
    return int(counter.get_total_flops())
