"""The house's own rules: short modules, and the field's words (``docs/glossary.md``) instead of ours.

``python -m tests.unit.test_house`` prints the figures.
"""

import re
import statistics
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGES = ("crds/adaptrain_api", "operator/adaptrain_operator", "trainer/adaptrain", "localcluster")
MOST_LINES, MEAN_LINES = 420, 170
TOO_LONG = {
    "operator/adaptrain_operator/controllers/job.py",
    "operator/adaptrain_operator/core/search/reconcile.py",
    "trainer/adaptrain/elastic/checkpoint/file_format.py",
    "trainer/adaptrain/elastic/checkpoint/manager.py",
    "trainer/adaptrain/elastic/membership/state_machine.py",
    "trainer/adaptrain/elastic/script/elastic.py",
    "trainer/adaptrain/elastic/state/replicated.py",
    "trainer/adaptrain/search/evaluation/evaluator.py",
}
"""Still to be taken apart. The list only becomes shorter."""
OURS = (
    "Mates", "PodGroup", "mourn", "GRIEF_SECONDS", "Farewell", "leave_behind", "Meeting", "GroupBroken",
    "GroupSockets", "TORN", "take_back", "begin_with", "pass_over", "NonFinite", "Keeper", "dismiss", "Apart", "Unread",
    "Standings", "Dispatch", "gather_words", "spread_words", "SearchSeen", "Puller",
)  # fmt: skip
"""Names that were ours alone."""
MODULES = (
    "mates", "pod", "followers", "orders", "control", "sockets", "shares", "transfer", "archive", "objects", "trace",
    "wire", "service", "load", "apart", "kept", "measured", "unread", "standings", "dispatch", "resolve", "drawing",
    "draft", "decide", "children", "searched", "restarts", "failures", "asking",
)  # fmt: skip
"""Names that modules had."""
KEPT = {"operator/adaptrain_operator/controllers/children.py", "trainer/adaptrain/elastic/checkpoint/failures.py",
        "crds/adaptrain_api/objects.py", "crds/adaptrain_api/training/failures.py"}  # fmt: skip
"""Where such a name is the field's word for what is there."""


def modules() -> dict[str, int]:
    """Lines of each module, by its path."""
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in found}


def test_modules_are_short() -> None:
    lines = modules()
    assert {name for name, count in lines.items() if count > MOST_LINES} == TOO_LONG
    assert statistics.mean(count for count in lines.values() if count) <= MEAN_LINES


@pytest.mark.parametrize("name", OURS)
def test_a_name_of_ours_is_gone(name: str) -> None:
    word = re.compile(rf"\b{name}\b")
    where = [path for path in modules() if word.search((ROOT / path).read_text())]
    assert where == []


def test_modules_have_the_fields_names() -> None:
    assert {path for path in modules() if Path(path).stem in MODULES} == KEPT


if __name__ == "__main__":
    every = modules()
    mean = statistics.mean(count for count in every.values() if count)
    print(f"{len(every)} modules, {mean:.0f} lines on average; longer than {MOST_LINES}:")
    for path, count in sorted(every.items(), key=lambda item: -item[1]):
        if count > MOST_LINES:
            print(f"{count:5} {path}")
