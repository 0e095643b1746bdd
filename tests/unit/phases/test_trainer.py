"""The trainer's parts that need no other process."""

import math
import sys
import types
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from adaptrain.config.manifest import read_job
from adaptrain.data.augment import augment
from adaptrain.data.digits import digits
from adaptrain.data.registry import load_data
from adaptrain.data.rng import bits, derive, normal, uniform
from adaptrain.data.sampler import Sampler, share
from adaptrain.elastic.state.sample_log import trace_directory
from adaptrain.errors import InvalidJob
from adaptrain.models.registry import build_model
from adaptrain_api.components import DataSource, ModelSource
from adaptrain_api.phases.phase import Augmentation
from sklearn.datasets import load_digits
from torch import nn

from tests.support.paths import ROOT


def test_a_pass_takes_every_sample_once_and_ends_with_the_rest() -> None:
    sampler = Sampler(103, seed=3)
    batches = [sampler.batch(0, cursor, 10) for cursor in range(0, 103, 10)]
    assert [len(b) for b in batches] == [10] * 10 + [3]
    assert sorted(torch.cat(batches).tolist()) == list(range(103))
    assert torch.equal(sampler.batch(0, 20, 10), Sampler(103, seed=3).batch(0, 20, 10))
    assert not torch.equal(sampler.batch(1, 20, 10), batches[2])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 20])
def test_shares_make_up_the_batch(size: int) -> None:
    ids = torch.arange(17)
    assert sorted(torch.cat([share(ids, r, size) for r in range(size)]).tolist()) == ids.tolist()


def test_random_numbers_are_uniform_and_normal() -> None:
    counters = np.arange(200_000, dtype=np.uint64)
    u, n = uniform(5, counters), normal(5, counters)
    assert abs(u.mean() - 0.5) < 0.005
    assert abs(u.var() - 1 / 12) < 0.002
    assert abs(n.mean()) < 0.01
    assert abs(n.std() - 1) < 0.01
    assert len(np.unique(bits(5, counters))) == len(counters)
    assert derive(1, "a") != derive(1, "b")
    assert derive(1, "a") == derive(1, "a")


def test_augmentation_depends_on_the_sample_and_not_on_its_company() -> None:
    how = Augmentation(shift_pixels=2, horizontal_flip=True, noise=0.1)
    x = torch.rand(8, 1, 8, 8, dtype=torch.float64)
    ids = torch.tensor([3, 1, 4, 15, 9, 2, 6, 5])
    whole = augment(x, ids, how, seed=7)
    part = augment(x[2:5], ids[2:5], how, seed=7)
    assert torch.equal(whole[2:5], part)
    assert not torch.equal(whole, augment(x, ids, how, seed=8))


def test_shifts_move_pixels_and_lose_none_but_at_the_edge() -> None:
    x = torch.zeros(500, 1, 8, 8)
    x[:, 0, 4, 4] = 1
    moved = augment(x, torch.arange(500), Augmentation(shift_pixels=1), seed=0)
    assert torch.equal(moved.sum(dim=(1, 2, 3)), torch.ones(500))
    where = {tuple(p) for p in moved[:, 0].nonzero()[:, 1:].tolist()}
    assert where == {(r, c) for r in (3, 4, 5) for c in (3, 4, 5)}


def test_digits_are_scikit_learns_split_in_the_same_proportions() -> None:
    data = digits()
    parts = [split.fetch(torch.arange(len(split))) for split in (data.train, data.validation, data.test)]  # type: ignore[arg-type]
    assert [len(y) for _, y in parts] == [1078, 359, 360]
    images, target = load_digits(return_X_y=True)
    ours = torch.cat([x.reshape(len(x), -1) * 16 for x, _ in parts]).to(torch.int64)
    assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, images.astype(int).tolist()))
    for _, y in parts:
        share_of_class = torch.bincount(y, minlength=10) / len(y)
        assert (share_of_class - torch.from_numpy(np.bincount(target) / len(target))).abs().max() < 0.005


def test_a_resnet_has_the_layers_that_it_is_named_after() -> None:
    model = build_model(ModelSource(name="resnet", args={"depth": 14, "width": 8}), digits())
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) + 1 == 14
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("resnet", {"depht": 8}, "model.args.depht: unknown; it takes depth, width, groups, dtype"),
        ("resnet", {"depth": 9}, "depth must be 6n + 2"),
        ("resnet", {"width": 10, "groups": 4}, "width 10 must be a multiple of groups 4"),
        ("resnet", {"dtype": "float8"}, "dtype must be float32 or float64"),
        ("mlp", {"width": 0}, "width must be an integer of at least 1"),
        ("mlp", {"shape": [1]}, "model.args.shape: unknown"),
        ("nowhere.at_all:model", {}, "no module 'nowhere' in this image"),
        ("math:nothing", {}, "math has no callable 'nothing'"),
        ("math:sqrt", {"x": 4}, "model.args"),
        ("torch.nn:Flatten", {}, "there is no parameter to train"),
    ],
)
def test_a_wrong_model_is_told_in_a_sentence(name: str, args: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidJob) as error:
        build_model(ModelSource(name=name, args=args), digits())
    assert says in str(error.value)


def test_a_users_own_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from torch.utils.data import TensorDataset\n"
        "def squares(n=20):\n"
        "    x = torch.arange(float(n)).reshape(-1, 1)\n"
        "    d = TensorDataset(x, (x[:, 0] > n / 2).long())\n"
        "    return {'train': d, 'validation': d}\n"
        "def wrong():\n"
        "    return 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    data = load_data(DataSource(name="mine:squares", args={"n": 30}))
    assert (len(data.train), data.shape, data.classes, data.test) == (30, (1,), 2, None)
    x, y = data.train.fetch(torch.tensor([29, 0]))
    assert x[:, 0].tolist() == [29, 0]
    assert y.tolist() == [1, 0]
    with pytest.raises(InvalidJob, match="must return a mapping"):
        load_data(DataSource(name="mine:wrong"))


def test_a_manifest_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidJob, match="No such file"):
        read_job(tmp_path / "absent.yaml")
    path = tmp_path / "job.yaml"
    path.write_text("kind: Pod\n")
    with pytest.raises(InvalidJob, match="must hold one object of kind AdaptiveTrainingJob, not 0"):
        read_job(path)
    path.write_text((ROOT / "examples" / "digits.yaml").read_text().replace("min: 1", "min: 9"))
    with pytest.raises(InvalidJob, match=r"workers\.min must be at most workers.max"):
        read_job(path)


def test_the_first_loss_of_a_classifier_is_that_of_guessing() -> None:
    torch.manual_seed(0)
    data = digits()
    x, y = data.train.fetch(torch.arange(len(data.train)))
    model = build_model(ModelSource(name="mlp"), data)
    assert nn.functional.cross_entropy(model(x), y).item() == pytest.approx(math.log(10), rel=0.1)


def test_a_job_is_traced_where_somebody_made_a_folder_for_it(tmp_path: Path) -> None:
    told = tmp_path / "told"
    assert trace_directory(None, None) is None
    assert trace_directory(None, tmp_path) is None
    assert trace_directory(told, tmp_path) == told
    (tmp_path / "trace").mkdir()
    assert trace_directory(None, tmp_path) == tmp_path / "trace"
    assert trace_directory(told, tmp_path) == told


class Large:
    """A data set whose samples that are held at once are counted."""

    held = most = 0

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        Large.held += 1
        Large.most = max(Large.most, Large.held)
        made = torch.zeros(1000)
        weakref.finalize(made, Large.let_go)
        return made, index % 3

    @classmethod
    def let_go(cls) -> None:
        cls.held -= 1


def given(monkeypatch: pytest.MonkeyPatch, **made: object) -> DataSource:
    module = types.ModuleType("given")
    module.data = lambda: made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "given", module)
    return DataSource(name="given:data")


def test_a_data_set_without_classes_is_read_a_sample_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    Large.held = Large.most = 0
    data = load_data(given(monkeypatch, train=Large(50), validation=Large(4)))
    assert (data.classes, data.shape) == (3, (1000,))
    assert Large.most <= 2


PAIRS = (torch.zeros(6, 2), torch.arange(6) % 3)


@pytest.mark.parametrize(
    ("made", "match"),
    [
        ({"train": PAIRS, "validation": Large(0)}, "returned validation, which is empty: give it samples"),
        ({"train": Large(0), "validation": PAIRS, "classes": 3}, "returned train, which is empty"),
        ({"train": PAIRS, "validation": PAIRS, "test": Large(0)}, "returned test, which is empty: leave it out"),
        ({"train": PAIRS, "validation": iter(())}, "a tuple_iterator, which is no map-style data set"),
        ({"train": (PAIRS[0], PAIRS[1] - 1), "validation": PAIRS}, r"sample 0 has class -1: .* from 0 on"),
        ({"train": (PAIRS[0], PAIRS[1] * 0.5), "validation": PAIRS}, r"sample 0 has class 0\.0: "),
        ({"train": (PAIRS[0], PAIRS[1][:3]), "validation": PAIRS}, "6 inputs and 3 classes"),
        ({"train": [1, 2], "validation": PAIRS, "classes": 3}, "samples must be pairs of a tensor and its class"),
        ({"train": PAIRS, "validation": PAIRS, "classes": 1}, "has classes 1: it must be a whole number from 2 on"),
    ],
)
def test_what_is_no_data_set_is_one_sentence_at_the_start(
    made: dict[str, object], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidJob, match=match):
        load_data(given(monkeypatch, **made))
