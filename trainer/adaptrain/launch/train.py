"""A job with model, data and phases, on one of its workers: a replica of the model, trained with all others."""

from collections.abc import Callable
from functools import partial

from adaptrain_api.contracts.coordinator_api import Result
from adaptrain_api.training.checkpoints import InitialWeights
from adaptrain_api.training.job import AdaptiveTrainingJob
from torch import nn

from adaptrain.data.registry import load_data
from adaptrain.elastic.checkpoint.origin import Origin
from adaptrain.elastic.membership.arrival import Arrival, arrive
from adaptrain.elastic.replica.base import Mates
from adaptrain.elastic.replica.local_ranks import Place
from adaptrain.elastic.session import Session, prepare
from adaptrain.elastic.storage.weights import Weights
from adaptrain.models.registry import build_model
from adaptrain.phases.sequence import PhaseSequence
from adaptrain.process.settings import WorkerSettings
from adaptrain.process.shutdown import Farewell


def train(
    told: WorkerSettings, job: AdaptiveTrainingJob, farewell: Farewell, place: Place, arrival: Arrival | None
) -> Result:
    """Train until the job is done, or this worker is asked to leave; ``place`` is this process's in the worker. A
    worker of one process has arrived before; of several, only now is there one to speak for all."""
    spec = job.spec
    mates, join = _mates(told, place)
    if arrival is None and place.rank == 0:
        arrival = join(farewell, preparing=True)
    metrics, trace = prepare(told, job.metadata.namespace or "default", job.metadata.name)
    assert spec.model is not None
    assert spec.data is not None
    assert spec.phases is not None
    model, data = spec.model, load_data(spec.data)

    def build() -> nn.Module:
        return mates.build(lambda: build_model(model, data).to(mates.device))

    task = PhaseSequence(
        spec.phases, build, data, spec.seed, metrics, trace, mates.replica, _weights(told, spec.initial_weights)
    )
    # A follower's beats begin here: what came before may keep its threads from running.
    others = mates.tell(arrival.control.workers if arrival is not None else 0)
    task.warm_up(mates.alone(), max(1, spec.workers.min, others))
    mates.agree(True)
    arrival = arrival or join(None, leads=False)
    session = Session(told, metrics, trace, spec.checkpoint, arrival, mates, Origin.of(job))
    loop = session.loop(task)
    session.control.prepared()
    for group in loop.units():
        with loop.attempt():
            task.unit(group)
    return session.result(loop, task)


def _weights(told: WorkerSettings, given: InitialWeights | None) -> Weights | None:
    if given is None:
        return None
    assert told.weights is not None
    return Weights(told.weights, given.path, given.sha256)


def _mates(told: WorkerSettings, place: Place) -> tuple[Mates, Callable[..., Arrival]]:
    """The processes of this worker, and how this one arrives."""
    if place.size == 1:
        return Mates(), partial(arrive, told)
    from adaptrain.elastic.replica.sharded import Pod  # FSDP takes seconds to import

    def leave_behind(words: str) -> None:
        if told.termination_log is not None:
            told.termination_log.write_text(words)

    pod = Pod(place, leave_behind)
    return pod, partial(arrive, told, connect=pod.control)
