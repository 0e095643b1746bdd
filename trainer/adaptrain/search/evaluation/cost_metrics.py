"""What is measured of a model, rather than trained: its costs, and proxies of what it is worth."""

import statistics
import time
from collections.abc import Iterator

import torch
from adaptrain_api.search.goals import WITHOUT_TRAINING
from adaptrain_api.search.job import ArchitectureSearchSpec, metrics_named

from adaptrain.data.dataset import DataSet
from adaptrain.data.rng import derive
from adaptrain.errors import InvalidJob
from adaptrain.models.cost import count_flops, count_parameters
from adaptrain.search.evaluation.function_trial import Metrics
from adaptrain.search.evaluation.zero_cost import score

PROXIES = ("naswot", "synflow")
PROXY_SAMPLES = 64
LEAST = -1000.0
"""Of a proxy that is −∞: metrics are finite, and this is below the logarithm of any number."""
LATENCY_RUNS = 20
LATENCY_WARM_UP = 5


def wanted(spec: ArchitectureSearchSpec) -> list[str]:
    """Metrics that somebody will look at: objectives, constraints and the gate."""
    gate = spec.promote.gate if spec.promote is not None else None
    return [*metrics_named(spec), *([gate.metric] if gate is not None else [])]


def needs_training(spec: ArchitectureSearchSpec) -> bool:
    """Whether anything is wanted that a model has only after training."""
    return not set(wanted(spec)) <= set(WITHOUT_TRAINING)


def proxies(model: torch.nn.Module, data: DataSet, seed: int, names: list[str]) -> Metrics:
    """Those among ``names``, of a model with its initial weights and the same training samples for all models.

    Raises:
        InvalidJob: the model has nothing that a proxy looks at.
    """
    chosen = [name for name in PROXIES if name in names]
    if not chosen:
        return {}
    first = next(model.parameters())
    generator = torch.Generator().manual_seed(derive(seed, "proxies"))
    ids = torch.randperm(len(data.train), generator=generator)[:PROXY_SAMPLES]
    batch = data.train.fetch(ids)[0].to(first.device, first.dtype)
    trains = model.training
    model.eval()
    try:
        return {name: max(score(name, model, batch), LEAST) for name in chosen}
    except ValueError as error:
        raise InvalidJob(f"objectives and constraints: {error}") from error
    finally:
        model.train(trains)


def costs(model: torch.nn.Module, data: DataSet, names: list[str]) -> Iterator[tuple[str, float]]:
    """Of those among ``names``: parameters, FLOPs of one sample's forward pass, and its median latency, seconds."""
    if "parameters" in names:
        yield "parameters", float(count_parameters(model))
    first = next(model.parameters())
    sample = torch.zeros(1, *data.shape, dtype=first.dtype, device=first.device)
    model.eval()
    with torch.no_grad():
        if "flops" in names:
            yield "flops", float(count_flops(model, sample[0]))
        if "latency" in names:
            times = []
            for _ in range(LATENCY_WARM_UP + LATENCY_RUNS):
                began = time.perf_counter()
                model(sample)
                if sample.is_cuda:
                    torch.cuda.synchronize(sample.device)
                times.append(time.perf_counter() - began)
            yield "latency", statistics.median(times[LATENCY_WARM_UP:])
