"""The command line: ``run`` and ``explain`` for people, ``coordinator``, ``worker`` and ``source`` for pods."""

import argparse
import sys
from pathlib import Path

from adaptrain.errors import InvalidJob
from adaptrain.process.lifetime import configure_logging

# torch is imported by those commands alone that need it: the coordinator does without.


def parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    program = argparse.ArgumentParser(
        prog="adaptrain", description="Elastic PyTorch training that adapts while it runs."
    )
    commands = program.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train a manifest on this machine, without a cluster")
    run.add_argument("manifest", type=Path, help="a YAML file with an AdaptiveTrainingJob")
    run.add_argument("--name", help="of the job, where the manifest holds several")
    run.add_argument("--workers", type=int, help="worker processes (default: the manifest's)")
    run.add_argument("--output", type=Path, help="where checkpoints and the model go (default: adaptrain-runs/NAME)")
    explain = commands.add_parser(
        "explain", help="tell the story of a job or search on the cluster that kubectl talks to"
    )
    explain.add_argument("name", help="of the job or search; search/NAME if a job has that name too")
    explain.add_argument("--namespace", "-n", help="where it is (default: the context's)")
    explain.add_argument("--context", help="of the kubeconfig (default: the current one)")
    search = commands.add_parser("search", help="search an architecture on this machine, without a cluster")
    actions = search.add_subparsers(dest="action", required=True)
    search_run = actions.add_parser("run", help="run a search's manifest")
    search_run.add_argument("manifest", type=Path, help="a YAML file with an ArchitectureSearch")
    search_run.add_argument("--name", help="of the search, where the manifest holds several")
    search_run.add_argument("--evaluators", type=int, help="processes (default: the manifest's parallelism.max)")
    search_run.add_argument("--output", type=Path, help="where the study goes (default: adaptrain-runs/NAME)")
    page = actions.add_parser("report", help="draw a study as one HTML page")
    page.add_argument("folder", type=Path, help="where the study is")
    page.add_argument("--study", help="its name (default: the only one there)")
    page.add_argument("--output", type=Path, default=Path("report.html"), help="the page (default: report.html)")
    commands.add_parser("coordinator", help="serve a job's coordinator (configured by ADAPTRAIN_* variables)")
    commands.add_parser("worker", help="run one worker of a job (configured by ADAPTRAIN_* variables)")
    commands.add_parser("source", help="fetch a script's files (configured by ADAPTRAIN_* variables)")
    commands.add_parser("packages", help="install a script's packages (configured by ADAPTRAIN_* variables)")
    commands.add_parser("progress", help="print what the coordinator tells (inside a pod of the job)")
    return program


def main() -> None:
    arguments = parser().parse_args()
    configure_logging()
    try:
        match arguments.command:
            case "run":
                from adaptrain.local.run import run_manifest

                sys.exit(run_manifest(arguments.manifest, arguments.workers, arguments.output, arguments.name))
            case "explain":
                from adaptrain.cli.explain import explain as story

                print(story(arguments.name, arguments.namespace, arguments.context))
            case "search" if arguments.action == "report":
                from adaptrain.search.report.html import report

                print(report(arguments.folder, arguments.study, arguments.output))
            case "search":
                from adaptrain.local.search import run_search

                sys.exit(run_search(arguments.manifest, arguments.evaluators, arguments.output, arguments.name))
            case "coordinator":
                from adaptrain.launch.coordinator import main as coordinate

                coordinate()
            case "worker":
                from adaptrain.launch.worker import main as work

                work()
            case "source":
                from adaptrain.launch.fetch_source import main as fetch

                fetch()
            case "packages":
                from adaptrain.launch.install_packages import main as install

                install()
            case "progress":
                from adaptrain.launch.progress import main as tell

                tell()
    except InvalidJob as error:
        sys.exit(f"adaptrain: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
