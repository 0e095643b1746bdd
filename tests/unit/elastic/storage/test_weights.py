"""Weights in a file: what a model starts from, and what of a trial's is kept."""

import hashlib
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adaptrain.elastic.storage.weights import Weights, save
from adaptrain.errors import InvalidJob
from adaptrain.search.evaluation.training_trial import Training
from adaptrain.search.study.weights_retention import stale
from torch import nn

from tests.unit.api.test_api_rules import PHASE
from tests.unit.search.test_search_dispatch import spec

MODEL = nn.Linear(3, 2)
STATE = MODEL.state_dict()


def test_weights_come_back_as_they_were(tmp_path: Path) -> None:
    digest = save(STATE, tmp_path / "a")
    assert digest == hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()
    found = Weights(tmp_path, "a", digest).read(nn.Linear(3, 2).state_dict())
    assert all(torch.equal(found[name], t) for name, t in STATE.items())


def garbage(file: Path) -> str:
    file.write_bytes(b"no weights")
    return hashlib.sha256(b"no weights").hexdigest()


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda file: "", "there is no file 'a' in the volume: correct it, or remove initialWeights"),
        (lambda file: save(STATE, file) and "0" * 64, "it was changed; name another file"),
        (garbage, "a is no safetensors file"),
        (lambda file: save(nn.Linear(3, 4).state_dict(), file), "weight is [4, 3] float32 in a, and [2, 3] float32 in"),
        (lambda file: save(MODEL.double().state_dict(), file), "weight is [2, 3] float64 in a, and [2, 3] float32 in"),
        (lambda file: save({"weight": STATE["weight"]}, file), "bias is absent in a, and [2] float32 in this model"),
        (lambda file: save(STATE | {"more": torch.ones(1)}, file), "more is [1] float32 in a, and absent in this"),
    ],
)
def test_other_weights_are_refused(tmp_path: Path, write: Callable[[Path], str], words: str) -> None:
    digest = write(tmp_path / "a") or None
    with pytest.raises(InvalidJob) as caught:
        Weights(tmp_path, "a", digest).read(nn.Linear(3, 2).state_dict())
    assert words in str(caught.value)


def test_what_ended_trials_left_goes_unless_it_may_win() -> None:
    names = ["3-aa.safetensors", "3-bb.safetensors", "4-cc.safetensors", "5-dd.safetensors", ".3-77", ".5-78", "mine"]
    kept = {"trials/3-bb.safetensors"}
    assert stale(names, {3, 4}, kept) == ["3-aa.safetensors", "4-cc.safetensors", ".3-77"]


def test_a_trial_whose_weights_find_no_room_is_complete_without_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trial = {"model": {"name": "mlp"}, "data": {"name": "digits"}, "phases": [PHASE | {"stop": {"steps": 1}}]}
    training = Training(
        spec(
            space={"parameters": [{"name": "model.args.width", "values": [8]}]},
            objectives=[{"metric": "val/accuracy", "goal": "maximize"}],
            trial=trial,
        ),
        tmp_path,
    )
    metrics = training.run({"parameters": {"model.args.width": 8}}, lambda step, metrics: None)
    assert "val/accuracy" in metrics
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # Python ignores the signal, and gets EFBIG
    try:
        assert training.keep(7) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "the weights of trial 7 are not kept" in caplog.text
    assert not list((tmp_path / "trials").iterdir())
    kept = training.keep(7)
    assert kept is not None
    assert [path.name for path in (tmp_path / "trials").iterdir()] == [Path(kept.path).name]
