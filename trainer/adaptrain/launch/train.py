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
from adaptrain.elastic.replica.base import Replica
from adaptrain.elastic.replica.local_ranks import LocalRank
from adaptrain.elastic.session import Session, prepare
from adaptrain.elastic.storage.weights import Weights
from adaptrain.models.registry import build_model
from adaptrain.phases.sequence import PhaseSequence
from adaptrain.process.settings import WorkerSettings
from adaptrain.process.shutdown import ShutdownSignal


def train(
    told: WorkerSettings, job: AdaptiveTrainingJob, farewell: ShutdownSignal, place: LocalRank, arrival: Arrival | None
) -> Result:
    """Train until the job is done, or this worker is asked to leave; ``place`` is this process's in the worker. A
    worker of one process has arrived before; of several, only now is there one to speak for all."""
    spec = job.spec
    replica, join = _replica(told, place)
    if arrival is None and place.rank == 0:
        arrival = join(farewell, preparing=True)
    metrics, trace = prepare(told, job.metadata.namespace or "default", job.metadata.name)
    assert spec.model is not None
    assert spec.data is not None
    assert spec.phases is not None
    model, data = spec.model, load_data(spec.data)

    def build() -> nn.Module:
        return replica.build(lambda: build_model(model, data).to(replica.device))

    task = PhaseSequence(
        spec.phases, build, data, spec.seed, metrics, trace, replica.state_type, _weights(told, spec.initial_weights)
    )
    # A follower's beats begin here: what came before may keep its threads from running.
    others = replica.broadcast_object(arrival.control.workers if arrival is not None else 0)
    task.warm_up(replica.alone(), max(1, spec.workers.min, others))
    replica.all_ranks(True)
    arrival = arrival or join(None, leads=False)
    session = Session(told, metrics, trace, spec.checkpoint, arrival, replica, Origin.of(job))
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


def _replica(told: WorkerSettings, place: LocalRank) -> tuple[Replica, Callable[..., Arrival]]:
    """The processes of this worker, and how this one arrives."""
    if place.size == 1:
        return Replica(), partial(arrive, told)
    from adaptrain.elastic.replica.sharded import ShardedReplica  # FSDP takes seconds to import

    def write_result(words: str) -> None:
        if told.termination_log is not None:
            told.termination_log.write_text(words)

    pod = ShardedReplica(place, write_result)
    return pod, partial(arrive, told, connect=pod.control)
