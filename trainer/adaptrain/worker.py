"""A worker: one replica of the model, training with whoever else is a member; or a user's own script."""

import logging
import os
import sys
import traceback
from typing import NoReturn

from adaptrain_api.progress import EXIT_INVALID, Result
from adaptrain_api.training import AdaptiveTrainingJob, Script
from torch import nn

from adaptrain.data import load_data
from adaptrain.elastic.loop import Refused
from adaptrain.elastic.mates import Mates
from adaptrain.elastic.session import (
    MESSAGE_LIMIT,
    Farewell,
    Session,
    WorkerSettings,
    end,
    failed,
    prepare,
    settings,
)
from adaptrain.errors import InvalidJob
from adaptrain.manifest import read_job
from adaptrain.models import build_model
from adaptrain.phases.supervised import SupervisedTask

log = logging.getLogger(__name__)


def main() -> NoReturn:
    """Work until the job is done or this worker is asked to leave."""
    told, mates = settings(), Mates()
    try:
        assert told.job is not None
        job = read_job(told.job)
        if job.spec.script is not None:
            _become(job.spec.script)
        if (processes := job.spec.workers.processes_per_worker) > 1:
            from adaptrain.elastic.pod import gather_pod

            told, mates = gather_pod(told, processes)
        result = _work(told, job, mates)
    except InvalidJob as error:
        log.error("%s", error)
        mates.mourn()
        end(told, EXIT_INVALID, failed(str(error)))
    except Exception as error:
        traceback.print_exc()
        last = traceback.format_exc()[-MESSAGE_LIMIT // 2 :] if not isinstance(error, Refused) else str(error)
        mates.mourn()
        end(told, 1, failed(last))
    else:
        end(told, 0, result)


def _work(told: WorkerSettings, job: AdaptiveTrainingJob, mates: Mates) -> Result:
    spec = job.spec
    farewell = Farewell() if mates.rank == 0 else None
    metrics, trace = prepare(told, job.metadata.namespace or "default", job.metadata.name)
    assert spec.model is not None
    assert spec.data is not None
    assert spec.phases is not None
    model, data = spec.model, load_data(spec.data)

    def build() -> nn.Module:
        return mates.build(lambda: build_model(model, data))

    task = SupervisedTask(spec.phases[0], build, data, spec.seed, metrics, trace, mates.replica)
    # Only a warm worker says hello: the others never wait for an import.
    session = Session(told, metrics, trace, spec.checkpoint, farewell, mates)
    loop = session.loop(task)
    for group in loop.units():
        with loop.attempt():
            task.unit(group)
    return session.result(loop, task)


def _become(script: Script) -> NoReturn:
    """Run a user's script in this process's place: it finds its settings in the environment, as this one did.

    Raises:
        InvalidJob: there is no such program, or no such directory.
    """
    if (folder := os.environ.get("ADAPTRAIN_SOURCE_DIR")) is not None:
        os.chdir(folder)
    program, *arguments = script.command
    if program == "python":
        program = sys.executable
    try:
        os.execvp(program, [program, *arguments])
    except OSError as error:
        raise InvalidJob(f"script.command: {program!r} can't be run: {error.strerror}") from error
