"""A worker: one replica of the model, training with whoever else is a member; or a user's own script."""

import logging
import os
import traceback
from dataclasses import replace
from typing import NoReturn

from adaptrain_api.contracts.coordinator_api import EXIT_INVALID, Result
from adaptrain_api.training.job import AdaptiveTrainingJob
from adaptrain_api.training.script import Script

from adaptrain.config.manifest import read_job
from adaptrain.elastic.membership.arrival import arrive
from adaptrain.elastic.replica.local_ranks import ALONE, LocalRank, fork
from adaptrain.errors import InvalidJob, Refused, ScriptFailed
from adaptrain.launch.torchrun import Launcher, expanded, program
from adaptrain.process import workspace
from adaptrain.process.result import WORDS_LIMIT, exit_with, failed_result
from adaptrain.process.settings import WorkerSettings, settings
from adaptrain.process.shutdown import ShutdownSignal
from adaptrain.rpc.descriptors import raise_limit

log = logging.getLogger(__name__)


def main() -> NoReturn:
    """Work until the job is done or this worker is asked to leave."""
    raise_limit()
    told, place = settings(), ALONE
    try:
        assert told.job is not None
        job = read_job(told.job)
        if (script := job.spec.script) is not None:
            result = _run(script, told, job)
        elif job.spec.search is not None:
            farewell = ShutdownSignal()
            workspace.enter()
            from adaptrain.search.evaluation.evaluator import evaluate

            result = evaluate(told, job, farewell)
        else:
            # Heard before torch is imported, which takes its time; a script has no use for torch in this process.
            farewell = ShutdownSignal()
            # Who forks has no thread yet that could speak to the coordinator.
            processes = job.spec.workers.processes_per_worker
            arrival = arrive(told, farewell, preparing=True) if processes == 1 else None
            from adaptrain.launch.train import train

            if processes > 1:
                import adaptrain.elastic.replica.sharded  # noqa: F401 -- once for all of them

            place = fork(processes)
            told = _placed(told, place)
            result = train(told, job, farewell, place, arrival)
    except InvalidJob as error:
        log.error("%s", error)
        place.wait_for_peer_exit()
        exit_with(told, EXIT_INVALID, failed_result(str(error)))
    except ScriptFailed as error:
        exit_with(told, error.code, failed_result(str(error)))
    except Refused as error:
        log.error("%s", error)
        place.wait_for_peer_exit()
        exit_with(told, 1, failed_result(str(error)))
    except Exception:
        traceback.print_exc()
        last = traceback.format_exc()[-WORDS_LIMIT:]
        place.wait_for_peer_exit()
        exit_with(told, 1, failed_result(last))
    else:
        exit_with(told, 0, result)


def _placed(told: WorkerSettings, place: LocalRank) -> WorkerSettings:
    """The settings of one of a worker's processes."""
    if place.rank == 0:
        return told
    return replace(told, name=f"{told.name}.{place.rank}", metrics_port=None, termination_log=place.words)


def _run(script: Script, told: WorkerSettings, job: AdaptiveTrainingJob) -> Result:
    command = program(script)
    workspace.enter()
    if script.launcher == "adaptrain":
        _become(expanded(command, os.environ))
    return Launcher(told, job, command, ShutdownSignal()).run()


def _become(command: list[str]) -> NoReturn:
    """Run a user's script in this process's place: it finds its settings in the environment, as this one did.

    Raises:
        InvalidJob: there is no such program.
    """
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise InvalidJob(f"script.command: {command[0]!r} can't be run: {error.strerror}") from error
