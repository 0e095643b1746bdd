"""A worker: one replica of the model, training with whoever else is a member; or a user's own script."""

import logging
import os
import traceback
from typing import NoReturn

from adaptrain_api.progress import EXIT_INVALID, Result

from adaptrain.environment import path
from adaptrain.errors import InvalidJob, Refused, ScriptFailed
from adaptrain.manifest import read_job
from adaptrain.process import MESSAGE_LIMIT, Farewell, WorkerSettings, end, failed, settings
from adaptrain.torchrun import Launcher, program

log = logging.getLogger(__name__)


def main() -> NoReturn:
    """Work until the job is done or this worker is asked to leave."""
    told = settings()
    try:
        result = _work(told)
    except InvalidJob as error:
        log.error("%s", error)
        end(told, EXIT_INVALID, failed(str(error)))
    except ScriptFailed as error:
        end(told, error.code, failed(str(error)))
    except Refused as error:
        log.error("%s", error)
        end(told, 1, failed(str(error)))
    except Exception:
        traceback.print_exc()
        end(told, 1, failed(traceback.format_exc()[-MESSAGE_LIMIT // 2 :]))
    else:
        end(told, 0, result)


def _work(told: WorkerSettings) -> Result:
    assert told.job is not None
    job = read_job(told.job)
    if (script := job.spec.script) is None:
        # Heard before torch is imported, which takes its time; a script has no use for torch in this process.
        farewell = Farewell()
        from adaptrain.training import train

        return train(told, job, farewell)
    command = program(script)
    _enter_source()
    if script.launcher == "adaptrain":
        _become(command)
    return Launcher(told, job, command, Farewell()).run()


def _enter_source() -> None:
    if (folder := path("ADAPTRAIN_SOURCE_DIR")) is not None:
        try:
            os.chdir(folder)
        except OSError as error:
            raise InvalidJob(f"script.source: {folder} can't be entered: {error.strerror}") from error


def _become(command: list[str]) -> NoReturn:
    """Run a user's script in this process's place: it finds its settings in the environment, as this one did.

    Raises:
        InvalidJob: there is no such program.
    """
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise InvalidJob(f"script.command: {command[0]!r} can't be run: {error.strerror}") from error
