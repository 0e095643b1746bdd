"""A checkpoint that isn't what was written is never taken for one that is."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from adaptrain.elastic import archive
from torch.distributed.checkpoint import FileSystemReader, load

COUNTERS = {"step": 7, "epoch": 1}


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "model.weight": torch.randn(40, 30, generator=g),
        "model.bias": torch.randn(40, generator=g, dtype=torch.float64),
        "optimizer.0.step": torch.tensor(7.0),
        "empty": torch.empty(0),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    archive.write(tmp_path / "saved", tensors(), COUNTERS)
    return tmp_path / "saved"


def fresh() -> dict[str, torch.Tensor]:
    return {name: torch.empty_like(t) for name, t in tensors().items()}


def test_what_is_read_is_what_was_written(folder: Path) -> None:
    into = fresh()
    assert archive.read(folder, into) == COUNTERS
    assert all(torch.equal(into[name], t) for name, t in tensors().items())


def test_it_loads_with_plain_torch(folder: Path) -> None:
    into = fresh()
    load(into, storage_reader=FileSystemReader(folder), no_dist=True)
    assert all(torch.equal(into[name], t) for name, t in tensors().items())


def test_every_file_is_in_the_manifest(folder: Path) -> None:
    manifest = archive.verify(folder)
    assert {path.name for path in folder.iterdir()} == {*manifest["files"], archive.MANIFEST}
    assert manifest["tensors"]["model.bias"] == "float64[40]"


@pytest.mark.parametrize("block", range(10))
def test_every_corruption_is_found(folder: Path, tmp_path: Path, block: int) -> None:
    other = tmp_path / "other"
    archive.write(other, tensors(seed=1), COUNTERS)
    for seed in range(block * 40, block * 40 + 40):
        broken = tmp_path / "broken"
        shutil.copytree(folder, broken)
        what = corrupt(broken, other, random.Random(seed))
        into = {name: torch.zeros_like(t) for name, t in tensors().items()}
        try:
            archive.read(broken, into)
        except archive.Corrupt:
            found = True
        else:
            found = False
        assert found, f"seed {seed}: {what} was not found"
        shutil.rmtree(broken)


def corrupt(broken: Path, other: Path, chance: random.Random) -> str:
    names = sorted(path.name for path in broken.iterdir() if path.stat().st_size)
    victim = broken / chance.choice(names)
    data = bytearray(victim.read_bytes())
    kind = chance.choice(["flip", "truncate", "extend", "missing", "swap", "zeros"])
    at = chance.randrange(len(data))
    if kind == "flip":
        data[at] ^= 1 << chance.randrange(8)
    elif kind == "truncate":
        del data[at:]
    elif kind == "extend":
        data += bytes([chance.randrange(256)])
    elif kind == "zeros":
        data[at:] = bytes(len(data) - at)
    elif kind == "swap":
        data = bytearray((other / victim.name).read_bytes())
    if kind == "missing":
        victim.unlink()
    elif data == victim.read_bytes():  # what was there already
        victim.write_bytes(data[:-1])
    else:
        victim.write_bytes(data)
    return f"{kind} {victim.name}"


def test_the_manifest_itself_is_guarded(folder: Path) -> None:
    manifest = json.loads((folder / archive.MANIFEST).read_bytes())
    manifest["files"] = {}
    (folder / archive.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(archive.Corrupt, match=r"manifest\.json"):
        archive.verify(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model.weight": torch.empty(41, 30)}, r"model\.weight is float32\[40, 30\] there, and float32\[41, 30\] in"),
        ({"model.weight": torch.empty(40, 30).double()}, r"float32\[40, 30\] there, and float64\[40, 30\] in this"),
        ({"model.more": torch.empty(2)}, r"it has no model\.more, which is float32\[2\] in this model"),
        ({"empty": None}, r"it has empty \(float32\[0\]\), which this model has not"),
    ],
)
def test_another_model_is_told_apart(folder: Path, change: dict[str, torch.Tensor | None], says: str) -> None:
    into = {name: t for name, t in (fresh() | change).items() if t is not None}
    with pytest.raises(archive.Mismatch, match=says):
        archive.read(folder, into)
