"""Manifests and programs that pages show are ones that would be taken."""

import ast
import re
from pathlib import Path

import pytest
import yaml
from adaptrain_api.search.job import ArchitectureSearch
from adaptrain_api.training.job import AdaptiveTrainingJob

from tests.support.paths import ROOT

PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")})
BLOCK = re.compile(r"^```(yaml|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
KINDS = {"AdaptiveTrainingJob": AdaptiveTrainingJob, "ArchitectureSearch": ArchitectureSearch}


def blocks(language: str) -> list[tuple[Path, str]]:
    return [(page, text) for page in PAGES for kind, text in BLOCK.findall(page.read_text()) if kind == language]


def test_programs_in_pages_can_be_parsed() -> None:
    programs = blocks("python")
    assert len(programs) > 5
    for page, text in programs:
        ast.parse(text.replace("…", "..."), str(page))


def test_manifests_in_pages_are_valid() -> None:
    """Those that are whole; of others only what they are about is shown."""
    whole = [(page, text) for page, text in blocks("yaml") if text.startswith("apiVersion: adaptrain.io/")]
    assert len(whole) > 1
    for page, text in whole:
        for manifest in yaml.safe_load_all(text):
            try:
                KINDS[manifest["kind"]].model_validate(manifest)
            except ValueError as error:
                pytest.fail(f"{page.relative_to(ROOT)}: {error}")
