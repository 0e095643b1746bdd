"""A job with model, data and phases, on one of its workers: a replica of the model, trained with all others."""

from adaptrain_api.progress import Result
from adaptrain_api.training import AdaptiveTrainingJob

from adaptrain.data import load_data
from adaptrain.elastic.session import Session, prepare
from adaptrain.models import build_model
from adaptrain.phases.supervised import SupervisedTask
from adaptrain.process import Farewell, WorkerSettings


def train(told: WorkerSettings, job: AdaptiveTrainingJob, farewell: Farewell) -> Result:
    """Train until the job is done, or this worker is asked to leave."""
    spec = job.spec
    metrics, trace = prepare(told, job.metadata.namespace or "default", job.metadata.name)
    assert spec.model is not None
    assert spec.data is not None
    assert spec.phases is not None
    model, data = spec.model, load_data(spec.data)
    task = SupervisedTask(spec.phases[0], lambda: build_model(model, data), data, spec.seed, metrics, trace)
    # Only a warm worker says hello: the others never wait for an import.
    session = Session(told, metrics, trace, spec.checkpoint, farewell)
    loop = session.loop(task)
    for group in loop.units():
        with loop.attempt():
            task.unit(group)
    return session.result(loop, task)
