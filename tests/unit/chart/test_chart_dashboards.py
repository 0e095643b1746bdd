"""The dashboards are well formed and ask for metrics that exist. That their queries find data: tests/e2e."""

import json
import re
from typing import Any

import pytest
from adaptrain.observability.metrics import JobMetrics, SearchMetrics, WorkerMetrics
from adaptrain_operator import metrics as operator_metrics
from prometheus_client import CollectorRegistry

from tests.support.paths import ROOT

Object = dict[str, Any]

FOLDER = ROOT / "charts/adaptrain/dashboards"
BOARDS = {path.stem: json.loads(path.read_text()) for path in FOLDER.glob("*.json")}
PROCESS = {"process_resident_memory_bytes", "process_cpu_seconds_total"}


def series(registry: CollectorRegistry) -> set[str]:
    """Names as Prometheus sees them."""
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
    return {family.name + suffix for family in registry.collect() for suffix in suffixes[family.type]}


def queries(board: Object) -> list[tuple[str, str]]:
    return [(panel["title"], target["expr"]) for panel in board["panels"] for target in panel.get("targets", [])]


def test_all_boards_are_there() -> None:
    assert set(BOARDS) == {"job", "operator", "search"}
    assert len({board["uid"] for board in BOARDS.values()}) == len(BOARDS)


@pytest.mark.parametrize("name", BOARDS)
def test_panels(name: str) -> None:
    board = BOARDS[name]
    assert re.fullmatch(r"[a-z0-9-]{1,40}", board["uid"])
    assert board["title"]
    assert board["schemaVersion"] >= 39
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    titles = [panel["title"] for panel in panels if panel["type"] == "row"]
    assert len(set(titles)) == len(titles)
    taken: dict[tuple[int, int], str] = {}
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken.get((x, y))}"
                taken[x, y] = panel["title"]
        if panel["type"] == "row":
            continue
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert references
        assert len(set(references)) == len(references)


@pytest.mark.parametrize("name", BOARDS)
def test_variables(name: str) -> None:
    board = BOARDS[name]
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert set(variables) == {"datasource", "namespace"} | ({name} if name in ("job", "search") else set())
    assert variables["datasource"]["query"] == "prometheus"
    builtin = {"__rate_interval", "__range"}
    for title, expr in queries(board):
        used = set(re.findall(r"\$(\w+)", expr))
        assert used <= variables.keys() | builtin, title
        assert "$namespace" in expr, title


@pytest.mark.parametrize("name", BOARDS)
def test_queries_ask_for_what_is_exported(name: str) -> None:
    known = PROCESS | series(operator_metrics.REGISTRY)
    for exported in (JobMetrics("n", "j"), WorkerMetrics("n", "j"), SearchMetrics("n", "s")):
        known |= series(exported.registry)
    board = BOARDS[name]
    variables = [(v["name"], v["definition"]) for v in board["templating"]["list"] if "definition" in v]
    for title, expr in queries(board) + variables:
        assert "vector(" not in expr, f"{title}: no data must look like no data"
        names = set(re.findall(r"\b(?:adaptrain|process)_\w+", expr))
        assert names, title
        assert names <= known, title


def test_job_board_shows_every_metric_of_a_job() -> None:
    expressions = " ".join(expr for _, expr in queries(BOARDS["job"]))
    for registry in (JobMetrics("n", "j").registry, WorkerMetrics("n", "j").registry):
        for family in registry.collect():
            assert family.name in expressions


def test_search_board_shows_every_metric_of_a_search() -> None:
    expressions = " ".join(expr for _, expr in queries(BOARDS["search"]))
    for family in SearchMetrics("n", "s").registry.collect():
        assert family.name in expressions


def test_operator_board_shows_every_metric_of_the_operator() -> None:
    expressions = " ".join(expr for _, expr in queries(BOARDS["operator"]))
    for family in operator_metrics.REGISTRY.collect():
        if family.name.startswith("adaptrain_"):
            assert family.name in expressions
