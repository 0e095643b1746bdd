"""The reference pages say what the code says."""

import re

import pytest

from docs import generate
from tests.support.paths import ROOT

SOURCES = [path for name in ("crds", "operator", "trainer", "localcluster") for path in (ROOT / name).rglob("*.py")]
VARIABLE = re.compile(r"\bADAPTRAIN_[A-Z_]*[A-Z]\b")
TABLES = (generate.SET_BY_OPERATOR, generate.SET_BY_HAND, generate.IN_ARGUMENTS, generate.LOCAL_CLUSTER)


def test_the_pages_are_those_that_the_code_makes(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(check=True) == 0, capsys.readouterr().err


def test_a_stale_page_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(generate.LOCAL_CLUSTER, "ADAPTRAIN_NEW", "Nothing.")
    assert generate.main(check=True) == 1
    assert "docs/reference/environment.md; run python -m docs.generate" in capsys.readouterr().err


def test_every_variable_that_code_reads_or_sets_is_described() -> None:
    found = {name for path in SOURCES for name in VARIABLE.findall(path.read_text())}
    found = {name for name in found if not name.startswith("ADAPTRAIN_OPERATOR")}
    described = {name for table in TABLES for name in table}
    assert found == described


@pytest.mark.parametrize("name", generate.PAGES)
def test_each_row_has_a_meaning(name: str) -> None:
    page = (ROOT / f"docs/reference/{name}.md").read_text()
    assert len(re.findall(r"^\| `", page, re.MULTILINE)) > 10
    assert re.findall(r"^\| `.*\|  \|$", page, re.MULTILINE) == []
