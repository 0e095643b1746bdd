"""Workflows and hooks call what the Makefile has, and no action whose content can change."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def steps(path: Path) -> list[dict[str, Any]]:
    """All steps of a workflow."""
    jobs = yaml.safe_load(path.read_text())["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


def test_there_are_workflows_for_changes_clusters_and_releases() -> None:
    assert {"ci", "e2e", "release"} <= {path.stem for path in WORKFLOWS}


@each_workflow
def test_an_action_is_named_by_its_commit_and_its_version(path: Path) -> None:
    used = re.findall(r"uses: (.+)", path.read_text())
    assert len(used) == sum("uses" in step for step in steps(path)) > 0
    assert [line for line in used if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)] == []


@each_workflow
def test_a_step_makes_a_target_that_there_is(path: Path) -> None:
    commands = [step["run"] for step in steps(path) if "run" in step]
    made = {word for line in re.findall(r"^make (.+)", "\n".join(commands), re.MULTILINE) for word in line.split()}
    assert {word for word in made if re.fullmatch(r"[a-z-]+", word)} - TARGETS == set()
    assert made, f"{path.name} makes nothing"


@each_workflow
def test_a_workflow_may_only_read_where_no_job_says_otherwise(path: Path) -> None:
    assert yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"}


def test_hooks_run_the_same_tools_as_make_lint() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    linted = {tuple(line.split()[:2]) for line in recipe[1].replace("$(BIN)/", ".venv/bin/").splitlines()}
    hooked = {tuple(hook["entry"].split()[:2]) for hook in hooks}
    assert hooked == linted
