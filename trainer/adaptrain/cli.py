"""The command line: ``run`` and ``explain`` for people, ``coordinator``, ``worker`` and ``source`` for pods."""

import argparse
import asyncio
import ctypes
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptrain_api.progress import CONTROL_PORT, EXIT_INVALID, HTTP_PORT

from adaptrain.descriptors import raise_limit
from adaptrain.environment import path, required
from adaptrain.errors import InvalidJob

if TYPE_CHECKING:
    from adaptrain.search.coordinator import SearchCoordinator

# torch is imported by those commands alone that need it: the coordinator does without.


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="adaptrain", description="Elastic PyTorch training that adapts while it runs."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train a manifest on this machine, without a cluster")
    run.add_argument("manifest", type=Path)
    run.add_argument("--name", help="of the job, where the manifest holds several")
    run.add_argument("--workers", type=int, help="worker processes (default: the manifest's)")
    run.add_argument("--output", type=Path, help="where checkpoints and the model go (default: adaptrain-runs/NAME)")
    explain = commands.add_parser(
        "explain", help="tell the story of a job or search on the cluster that kubectl talks to"
    )
    explain.add_argument("name", help="of the job or search; search/NAME if a job has that name too")
    explain.add_argument("--namespace", "-n")
    explain.add_argument("--context")
    search = commands.add_parser("search", help="search an architecture on this machine, without a cluster")
    actions = search.add_subparsers(dest="action", required=True)
    search_run = actions.add_parser("run", help="run a search's manifest")
    search_run.add_argument("manifest", type=Path)
    search_run.add_argument("--name", help="of the search, where the manifest holds several")
    search_run.add_argument("--evaluators", type=int, help="processes (default: the manifest's parallelism.max)")
    search_run.add_argument("--output", type=Path, help="where the study goes (default: adaptrain-runs/NAME)")
    page = actions.add_parser("report", help="draw a study as one HTML page")
    page.add_argument("folder", type=Path, help="where the study is")
    page.add_argument("--study", help="its name (default: the only one there)")
    page.add_argument("--output", type=Path, default=Path("report.html"))
    commands.add_parser("coordinator", help="serve a job's coordinator (configured by ADAPTRAIN_* variables)")
    commands.add_parser("worker", help="run one worker of a job (configured by ADAPTRAIN_* variables)")
    commands.add_parser("source", help="fetch a script's files (configured by ADAPTRAIN_* variables)")
    commands.add_parser("packages", help="install a script's packages (configured by ADAPTRAIN_* variables)")
    arguments = parser.parse_args()
    configure_logging()
    try:
        match arguments.command:
            case "run":
                from adaptrain.run import run_manifest

                sys.exit(run_manifest(arguments.manifest, arguments.workers, arguments.output, arguments.name))
            case "explain":
                from adaptrain.explain import explain as story

                print(story(arguments.name, arguments.namespace, arguments.context))
            case "search" if arguments.action == "report":
                from adaptrain.search.report import report

                print(report(arguments.folder, arguments.study, arguments.output))
            case "search":
                from adaptrain.search.run import run_search

                sys.exit(run_search(arguments.manifest, arguments.evaluators, arguments.output, arguments.name))
            case "coordinator":
                if (parent := os.environ.get("ADAPTRAIN_PARENT")) is not None:
                    die_with_parent(int(parent))
                _coordinator()
            case "worker":
                worker()
            case "source":
                _source()
            case "packages":
                _packages()
    except InvalidJob as error:
        sys.exit(f"adaptrain: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def die_with_parent(parent: int) -> None:
    """A process that a local runner started ends with it, however the runner ends."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("adaptrain: the runner has ended")


def configure_logging() -> None:
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, stream=sys.stderr, force=True)


def _coordinator() -> None:
    from adaptrain_api.base import ALLOWED
    from adaptrain_api.pods import PRIVILEGES

    from adaptrain.elastic.coordinator import Coordinator
    from adaptrain.manifest import read_job

    ALLOWED.update(PRIVILEGES)  # what the job may have, the operator has decided
    job = read_job(Path(required("ADAPTRAIN_JOB_FILE")))
    token = Path(required("ADAPTRAIN_TOKEN_FILE")).read_text().strip()
    number = int(required("ADAPTRAIN_COORDINATOR_NUMBER"))
    coordinator: Coordinator | SearchCoordinator
    if job.spec.search is None:
        namespace = job.metadata.namespace or "default"
        coordinator = Coordinator(number, token, job.spec.workers.min, namespace, job.metadata.name)
    else:
        coordinator = _search_coordinator(number, token, job.spec.search)
    control = int(os.environ.get("ADAPTRAIN_CONTROL_PORT", CONTROL_PORT))
    web = int(os.environ.get("ADAPTRAIN_HTTP_PORT", HTTP_PORT))
    asyncio.run(coordinator.run(os.environ.get("ADAPTRAIN_HOST", ""), control, web))


def _search_coordinator(number: int, token: str, search: dict[str, Any]) -> "SearchCoordinator":
    from adaptrain_api.search import ArchitectureSearch

    from adaptrain.search.coordinator import SearchCoordinator

    volume = path("ADAPTRAIN_STORAGE_DIR")
    try:
        return SearchCoordinator(
            number, token, ArchitectureSearch.model_validate(search), volume, os.environ.get("ADAPTRAIN_STORAGE_URL")
        )
    except InvalidJob as error:
        logging.error("%s", error)
        sys.exit(EXIT_INVALID)


def _source() -> None:
    """Fetch a script's files into a pod; its termination message is the commit, or why there is none."""
    from adaptrain.process import WORDS_LIMIT, ending
    from adaptrain.source import WHOLE_SECONDS, fetch, within

    ended = Path(required("ADAPTRAIN_TERMINATION_LOG"))
    try:
        with within(WHOLE_SECONDS):
            commit = fetch(
                required("ADAPTRAIN_GIT_URL"),
                required("ADAPTRAIN_GIT_REF"),
                Path(required("ADAPTRAIN_SOURCE_DIR")),
                os.environ.get("ADAPTRAIN_GIT_USERNAME"),
                os.environ.get("ADAPTRAIN_GIT_PASSWORD"),
            )
    except (InvalidJob, OSError) as error:
        ended.write_text(ending(str(error), WORDS_LIMIT))
        logging.error("%s", error)
        sys.exit(EXIT_INVALID if isinstance(error, InvalidJob) else 1)
    ended.write_text(commit)


def _packages() -> None:
    """Install a script's packages into a pod; its termination message is why they can't be."""
    from adaptrain.packages import install
    from adaptrain.process import WORDS_LIMIT, ending

    try:
        install(
            required("ADAPTRAIN_PACKAGES").split(),
            Path(required("ADAPTRAIN_PACKAGES_DIR")),
            path("ADAPTRAIN_PACKAGE_CACHE"),
        )
    except (InvalidJob, OSError) as error:
        Path(required("ADAPTRAIN_TERMINATION_LOG")).write_text(ending(str(error), WORDS_LIMIT))
        logging.error("%s", error)
        sys.exit(EXIT_INVALID if isinstance(error, InvalidJob) else 1)


def worker() -> None:
    """Run one worker, as the environment says; never returns."""
    from adaptrain.worker import main as work

    raise_limit()
    work()


if __name__ == "__main__":
    main()
