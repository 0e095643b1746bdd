"""A study as a page."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from adaptrain.errors import InvalidJob
from adaptrain.search.report.html import report
from adaptrain.search.spaces.registry import make_space
from adaptrain.search.study.study import Study, TrialRecord, open_store

from tests.unit.search.test_search_dispatch import spec


def written(folder: Path, **given: object) -> str:
    wanted = spec(**given)
    space = make_space(wanted.space)
    one = Study(lambda: open_store(folder, None), "default.one", "uid", 1, wanted, space)
    one.history()
    ended = []
    for n in range(30):
        cell = (n % 3, n // 3 % 3, n // 9 % 3, 0)
        metrics = {"score": float(3 * cell[0] + cell[1]), "size": float(cell[0])}
        ended.append(TrialRecord(n, cell, "complete", metrics, why={"parents": [[0, 0, 0, n]]}, ended=1000.0 + n))
    ended.append(TrialRecord(30, (1, 1, 1, 1), "failed", message="Traceback\nValueError: <bad> & worse", ended=2000.0))
    one.record(ended)
    said = report(folder, None, folder / "page.html")
    assert said.endswith("page.html: 31 trials of default.one")
    return (folder / "page.html").read_text()


def drawings(page: str) -> list[ET.Element]:
    return [ET.fromstring("<svg" + part.split("</svg>")[0] + "</svg>") for part in page.split("<svg")[1:]]


def test_one_objective(tmp_path: Path) -> None:
    page = written(tmp_path)
    progress, importance = drawings(page)
    assert len(progress.findall("circle")) == 30
    bars = [float(bar.get("width", "")) for bar in importance.findall("rect")]
    assert next(text.text for text in importance.findall("text")) == "c0", "its share of the score is the largest"
    assert bars == sorted(bars, reverse=True)
    assert "ValueError: &lt;bad&gt; &amp; worse" in page
    assert "30 trials completed, 0 were stopped early, 1 failed." in page
    assert "http" not in page, "it needs nothing else"


def test_the_best_are_drawn(tmp_path: Path) -> None:
    wanted = spec(space={"name": "mlp", "args": {"depths": [1, 2], "widths": [4, 8]}})
    space = make_space(wanted.space)
    one = Study(lambda: open_store(tmp_path, None), "default.one", "uid", 1, wanted, space)
    one.history()
    cells = [(1, 0, n, 1) for n in range(2)]
    one.record(
        [TrialRecord(n, cell, "complete", {"score": float(n)}, ended=1000.0 + n) for n, cell in enumerate(cells)]
    )
    report(tmp_path, None, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.index("Trial 1: depth 2, activation relu") < page.index("Trial 0: depth 2, activation relu")
    _, best, other = drawings(page)
    assert [text.text for text in best.findall("text")] == ["input", "width 8", "width 8", "output"]
    assert [text.text for text in other.findall("text")] == ["input", "width 4", "width 8", "output"]


def test_luck_is_told_where_trials_are_repeated(tmp_path: Path) -> None:
    wanted = spec()
    one = Study(lambda: open_store(tmp_path, None), "default.one", "uid", 1, wanted, make_space(wanted.space))
    one.history()
    for n in range(2):
        why = {"again": True} if n else {}
        one.record([TrialRecord(n, (0, 0, 0, 1), "complete", {"score": float(n)}, why=why, ended=1000.0 + n)])
        report(tmp_path, None, tmp_path / "page.html")
        assert ("The search is noisy" in (tmp_path / "page.html").read_text()) == (n == 1)


def test_several_objectives(tmp_path: Path) -> None:
    goals = [{"metric": "score", "goal": "maximize"}, {"metric": "size", "goal": "minimize"}]
    page = written(tmp_path, objectives=goals, constraints=[{"metric": "size", "atMost": 1}])
    _, front = drawings(page)
    found = [dot for dot in front.findall("circle") if dot.get("class") == "front"]
    assert {dot.get("cx") for dot in found} == {"46.0", "320.0"}, "sizes 0 and 1, as size 2 breaks the constraint"
    assert "10 break a constraint" in page


def test_what_is_no_study_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidJob, match=r"there is no study.journal in it"):
        report(tmp_path, None, tmp_path / "x")
    written(tmp_path)
    with pytest.raises(InvalidJob, match=r"has the studies default.one: name one of them with --study"):
        report(tmp_path, "other", tmp_path / "x")
