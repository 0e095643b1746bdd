"""Searches that train one network for all cells first: who trains it, what follows from it, and what is kept of it."""

import hashlib
import logging
import pickle
import random
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adaptrain.data.digits import digits
from adaptrain.errors import InvalidJob
from adaptrain.search.algorithms.oneshot import METHODS, SUPERNET, CellSpace, OneShot
from adaptrain.search.algorithms.registry import make_algorithm
from adaptrain.search.evaluation.supernet_trial import make_run, train_supernet
from adaptrain.search.evaluation.training_trial import Training
from adaptrain.search.oneshot import artifact
from adaptrain.search.oneshot.artifact import FOLDER
from adaptrain.search.oneshot.base import search
from adaptrain.search.report.html import report
from adaptrain.search.scheduler import MOST_ATTEMPTS, Assignment
from adaptrain.search.spaces.nasbench201 import NasBench201
from adaptrain.search.spaces.registry import make_space
from adaptrain.search.study.study import Study, TrialRecord, open_store
from adaptrain_api.contracts.coordinator_api import TrialWeights

from tests.unit.api.test_api_rules import PHASE
from tests.unit.search.test_search_dispatch import Desk, spec

SPACE = {"name": "nasbench201", "args": {"cells": 1, "width": 4}}
RANKING = [((3, 3, 3, 3, 3, n), 1.0 - n / 10) for n in (3, 2, 4, 1)]
WEIGHTS = TrialWeights(path="supernet/5-0123456789abcdef.pt", sha256="0" * 64)
TRAINED = {"data": {"name": "digits"}, "phases": [PHASE]}


def wanted(**given: Any) -> Any:
    return spec(**{"space": SPACE, "algorithm": {"name": "darts", "args": {"epochs": 5}}, "trial": TRAINED} | given)


def desk(history: list[TrialRecord] | None = None, known: list[TrialRecord] | None = None, **given: Any) -> Desk:
    return Desk(wanted(**given), history or [], known or [])


def told(d: Desk, evaluator: str, given: Assignment, now: float = 0.0) -> TrialRecord:
    """It ends well."""
    if given.architecture == SUPERNET:
        ended = d.tell(evaluator, given.number, "complete", {}, "", now, WEIGHTS, RANKING)
    else:
        ended = d.tell(evaluator, given.number, "complete", {"score": float(sum(given.architecture))}, "", now)
    assert ended is not None
    return ended


def take(d: Desk, evaluator: str = "a") -> Assignment:
    given = d.take(evaluator, 0)
    assert given is not None
    return given


def test_the_network_is_trained_first_and_by_one_evaluator() -> None:
    d = desk()
    first = take(d)
    assert (first.number, first.architecture) == (0, SUPERNET)
    assert d.take("b", 0) is None, "what comes next follows from it"
    assert not d.report("a", 0, 3, {"supernet/loss": 2.0})
    assert d.supernet == "trial 0 trains the network that all cells share: 3 of 5 passes"
    d.lost("a", 1)
    assert d.supernet is not None
    assert d.supernet.endswith("3 of 5 passes; an evaluator is waited for")
    again = take(d, "b")
    assert (again.number, again.architecture) == (0, SUPERNET)
    told(d, "b", again)
    assert d.supernet is None
    asked = [take(d, evaluator) for evaluator in "abcd"]
    assert [one.architecture for one in asked] == [architecture for architecture, _ in RANKING]
    assert [one.why["rank"] for one in asked] == [1, 2, 3, 4]
    assert not d.standings.top, "the network itself is no architecture"


@pytest.mark.parametrize("seed", range(10))
def test_a_search_is_resumed_from_its_history_alone(seed: int) -> None:
    """Whenever a coordinator takes over, the same is asked as by one that nothing happens to."""
    calm = desk(budget={"trials": 12})
    while calm.verdict(0) is None:
        told(calm, "a", take(calm))
    chance, history = random.Random(seed), list[TrialRecord]()
    d = desk(budget={"trials": 12})
    while d.verdict(0) is None:
        given = take(d)
        match chance.choice(["works", "lost", "coordinator", "both"]):
            case "works":
                history.append(told(d, "a", given))
            case "lost":
                d.lost("a", 0, orderly=True)
            case "coordinator":
                d = desk(history, budget={"trials": 12})
                assert d.back("a", given.number, given.architecture, given.why, 0)
                history.append(told(d, "a", given))
            case "both":
                d = desk(history, budget={"trials": 12})
    assert [(one.number, one.architecture) for one in history] == [
        (one.number, one.architecture) for one in calm.ended.values()
    ]
    assert len({one.architecture for one in history}) == 12


def test_a_network_that_fails_is_tried_again_until_too_many_have() -> None:
    d = desk(maxFailedTrials=2)
    for n in range(3):
        assert take(d).architecture == SUPERNET
        assert d.tell("a", n, "failed", {}, "no memory", 0) is not None
    verdict = d.verdict(0)
    assert verdict is not None
    assert "3 trials failed" in verdict.message
    assert "no memory" in verdict.message
    lost = desk()
    for n in range(MOST_ATTEMPTS):
        take(lost, f"e{n}")
        failed = lost.lost(f"e{n}", 0)
    assert [one.state for one in failed] == ["failed"]
    assert take(lost).number == 1


def test_a_network_that_ranks_nothing_has_failed() -> None:
    d = desk()
    take(d)
    ended = d.tell("a", 0, "complete", {}, "", 0, WEIGHTS, [])
    assert ended is not None
    assert ended.state == "failed"
    assert take(d).architecture == SUPERNET


def test_a_search_that_trained_the_network_alone_has_found_nothing() -> None:
    d = desk(budget={"seconds": 10})
    told(d, "a", take(d), now=20)
    verdict = d.verdict(20)
    assert verdict is not None
    assert verdict.reason == "NoTrialCompleted"


def test_the_network_of_another_search_is_none_of_ours(tmp_path: Path) -> None:
    """But its trials are: none of them is repeated."""
    written = _study(tmp_path, "default.one", wanted())
    cell = RANKING[0][0]
    written.record(
        [
            TrialRecord(
                0, SUPERNET, "complete", {"supernet/loss": 1.0}, weights=WEIGHTS, ranking=RANKING, ended=1000.0
            ),
            TrialRecord(1, cell, "complete", {"score": 1.0}, ended=1001.0),
        ]
    )
    known = _study(tmp_path, "default.other", wanted()).known("default.one")
    assert [one.number for one in known] == [1]
    d = desk(known=known)
    told(d, "a", take(d))
    assert take(d).architecture == RANKING[1][0]


def test_the_study_keeps_the_ranking_and_the_report_tells_of_it(tmp_path: Path) -> None:
    study = _study(tmp_path, "default.one", wanted())
    ended = [
        TrialRecord(
            0, SUPERNET, "complete", {}, why={"supernet": "darts"}, weights=WEIGHTS, ranking=RANKING, ended=1000.0
        ),
        TrialRecord(1, SUPERNET, "failed", message="no memory", ended=1000.5),
        TrialRecord(2, RANKING[0][0], "complete", {"score": 1.0}, ended=1001.0),
    ]
    study.record(ended)
    assert _study(tmp_path, "default.one", wanted(), number=2).history() == ended
    report(tmp_path, None, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "1 trials completed, 0 were stopped early, 1 failed." in page
    assert "Trial 0 trained one network that all cells share, in 0 s, and ranked 4 of them" in page


def _study(folder: Path, name: str, one: Any, number: int = 1) -> Study:
    return Study(lambda: open_store(folder, None), name, name, number, one, make_space(one.space))


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("darts", {"epoch": 5}, "algorithm.args.epoch: unknown; it takes epochs, batch_size, rate, samples, "),
        ("darts", {"epochs": 0}, "epochs must be an integer of at least 1, not 0"),
        ("enas", {"controller_rate": -1}, "controller_rate must be a number above 0, not -1"),
        ("spos", {"evaluations": "many"}, "evaluations must be an integer of at least 1, not 'many'"),
        ("darts", {"second_order": 1}, "second_order must be true or false, not 1"),
    ],
)
def test_wrong_arguments_are_refused_before_the_first_trial(name: Any, args: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidJob, match=words):
        make_algorithm(wanted(algorithm={"name": name, "args": args}), NasBench201())


SMALL = NasBench201(cells=1, width=4)
Train = Callable[..., tuple[Any, Any, TrialWeights | None]]


def searcher(epochs: int = 4, samples: int = 40, space: CellSpace = SMALL) -> OneShot:
    return OneShot(space, 1, METHODS["darts"](epochs=epochs, samples=samples))  # type: ignore[call-arg]


def trained(folder: Path | None, **given: Any) -> tuple[list[int], Any, TrialWeights | None]:
    """The passes that were taken, the ranking, and what was kept."""
    passes = list[int]()
    _, ranking, kept = train_supernet(
        searcher(**given), digits(), 1, torch.device("cpu"), folder, lambda step, _: passes.append(step)
    )
    return passes, ranking, kept


class Gone(Exception):
    """The evaluator is lost."""


def interrupted(folder: Path, after: int) -> None:
    def leave(step: int, _: Any) -> None:
        if step > after:
            raise Gone

    with pytest.raises(Gone):
        train_supernet(searcher(), digits(), 1, torch.device("cpu"), folder, leave)


def test_who_trains_the_network_next_goes_on_from_what_was_kept(tmp_path: Path) -> None:
    passes, ranking, kept = trained(tmp_path / "whole")
    assert passes == [1, 2, 3, 4]
    interrupted(tmp_path / "other", after=1)
    assert [path.name[:2] for path in (tmp_path / "other" / FOLDER).iterdir()] == ["1-"]
    assert trained(tmp_path / "other")[:2] == ([2, 3, 4], ranking)
    assert kept is not None
    assert [path.name for path in (tmp_path / "whole" / FOLDER).iterdir()] == [Path(kept.path).name]
    assert trained(tmp_path / "whole") == ([], ranking, kept), "its end was not told: it is told again"
    assert trained(None)[:2] == (passes, ranking)


def test_what_is_no_state_of_this_search_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    interrupted(tmp_path, after=2)
    (file,) = (tmp_path / FOLDER).iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with caplog.at_level(logging.WARNING):
        assert trained(tmp_path)[0] == [1, 2, 3, 4]
    assert f"{file} is not what was written" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert trained(tmp_path, epochs=5)[0] == [1, 2, 3, 4, 5]
    assert "is of a search with other arguments or other data" in caplog.text


def test_a_state_that_can_not_be_read_now_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(tmp_path, after=2)
    real, failed = Path.read_bytes, []

    def stale(path: Path) -> bytes:
        if len(failed) < 3:
            failed.append(path)
            raise OSError(116, "Stale file handle")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", stale)
    monkeypatch.setattr(artifact, "RETRY_SECONDS", 0.001)
    assert trained(tmp_path)[0] in ([3, 4], [2, 3, 4]), "what was kept aside when it was interrupted"
    assert len(failed) == 3
    monkeypatch.setattr(artifact, "WAIT_SECONDS", 0.0)
    failed.clear()
    with pytest.raises(OSError, match="Stale file handle"):
        trained(tmp_path)


def test_a_forged_state_is_passed_over_in_words(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    forged = pickle.dumps(object)
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / f"3-{hashlib.sha256(forged).hexdigest()[:16]}.pt").write_bytes(forged)
    with caplog.at_level(logging.WARNING):
        assert trained(tmp_path)[0] == [1, 2, 3, 4]
    assert "holds no state of a network" in caplog.text


def test_a_network_that_finds_no_room_ranks_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        passes, ranking, kept = trained(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (passes, kept) == ([1, 2, 3, 4], None)
    assert ranking == trained(None)[1]
    assert "the network is not kept" in caplog.text
    assert not list((tmp_path / FOLDER).iterdir())


def test_samples_are_drawn_from_the_training_set() -> None:
    run = make_run(searcher(samples=30), digits(), 1, torch.device("cpu"))
    assert len(run.train[0]) + len(run.compare[0]) == 30
    everything = digits().train.fetch(torch.arange(len(digits().train)))[0].flatten(1)
    drawn = torch.cat([run.train[0], run.compare[0]]).flatten(1)
    assert ((drawn[:, None] == everything).all(2).sum(1) >= 1).all()
    assert len(torch.unique(drawn, dim=0)) > 25


def test_data_that_the_network_cannot_take_is_told() -> None:
    with pytest.raises(InvalidJob, match="algorithm: a one-shot search needs at least 4 training samples, not 2"):
        trained(None, samples=2)


def test_an_evaluator_trains_the_network_and_then_cells(tmp_path: Path) -> None:
    one = wanted(
        algorithm={"name": "darts", "args": {"epochs": 2, "samples": 40}},
        objectives=[{"metric": "val/accuracy", "goal": "maximize"}],
        trial={"data": {"name": "digits"}, "phases": [PHASE | {"stop": {"steps": 1}}]},
    )
    training, reports = Training(one, tmp_path), list[tuple[int, Any]]()
    metrics = training.run({"supernet": True}, lambda step, found: reports.append((step, found)))
    assert [step for step, _ in reports] == [1, 2]
    assert metrics == reports[-1][1]
    assert metrics.keys() == {"supernet/loss", "supernet/skips"}
    left = training.left
    assert not training.keeps
    same = make_run(OneShot(SMALL, 0, METHODS["darts"](epochs=2, samples=40)), digits(), 0, torch.device("cpu"))  # type: ignore[call-arg]
    assert left["ranking"] == search(same).ranking
    assert (tmp_path / left["weights"]["path"]).exists()
    space = make_space(one.space)
    found = training.run({"model": space.choice(left["ranking"][0][0])["model"]}, lambda step, metrics: None)
    assert "val/accuracy" in found
    assert not training.left
    kept = training.keep(1)
    assert kept is not None
    assert kept.path.startswith("trials/1-")
