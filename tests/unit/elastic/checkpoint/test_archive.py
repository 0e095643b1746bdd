"""A checkpoint that isn't what was written is never taken for one that is."""

import contextlib
import json
import random
import shutil
from pathlib import Path

import fsspec
import obstore.fsspec
import pytest
import torch
from adaptrain.elastic.checkpoint import file_format
from adaptrain.elastic.storage.directory import Storage
from safetensors.torch import load as load_bytes
from safetensors.torch import load_file
from torch.distributed.checkpoint import HuggingFaceStorageReader, load

from tests.unit.conftest import Place

COUNTERS = {"step": 7, "epoch": 1}


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "model.weight": torch.randn(40, 30, generator=g),
        "model.bias": torch.randn(40, generator=g, dtype=torch.float64),
        "optimizer.0.step": torch.tensor(7.0),
        "empty": torch.empty(0),
    }


def write(place: Place, step: int = 7, seed: int = 0) -> str:
    """A whole checkpoint. Returns its folder's name."""
    name = f"step-{step:010d}.{(1 << 32) + 1}"
    folder = place.storage.begin(name)
    manifest = file_format.write(place.storage, folder, tensors(seed), {**COUNTERS, "step": step})
    return place.storage.commit(folder, name, manifest, lambda: None)


@pytest.fixture
def folder(place: Place) -> str:
    return write(place)


def fresh() -> dict[str, torch.Tensor]:
    return {name: torch.empty_like(t) for name, t in tensors().items()}


def test_what_is_read_is_what_was_written(place: Place, folder: str) -> None:
    found, counters = file_format.read(place.storage, folder, lambda _: fresh())
    assert counters == COUNTERS
    assert all(torch.equal(found[name], t) for name, t in tensors().items())


def test_the_order_of_the_tensors_does_not_matter(place: Place, folder: str) -> None:
    found, _ = file_format.read(place.storage, folder, lambda _: dict(reversed(fresh().items())))
    assert all(torch.equal(found[name], t) for name, t in tensors().items())


def test_it_loads_with_plain_safetensors(place: Place, folder: str) -> None:
    found = load_file(place.root / folder / "tensors-0.safetensors")
    assert found.keys() == tensors().keys()
    assert all(torch.equal(found[name], t) for name, t in tensors().items())


def test_it_loads_with_plain_torch(place: Place, folder: str) -> None:
    into = fresh()
    load(into, storage_reader=HuggingFaceStorageReader(str(place.root / folder)), no_dist=True)
    assert all(torch.equal(into[name], t) for name, t in tensors().items())


def test_a_bucket_loads_with_plain_safetensors_and_fsspec(bucket: Place) -> None:
    folder = write(bucket)
    obstore.fsspec.register("s3")
    with fsspec.open(f"{bucket.storage}/{folder}/tensors-0.safetensors", client_options={"allow_http": True}) as file:
        found = load_bytes(file.read())
    assert all(torch.equal(found[name], t) for name, t in tensors().items())


def test_every_file_is_in_the_manifest(place: Place, folder: str) -> None:
    manifest = file_format.verify(place.storage, folder)
    assert {path.name for path in (place.root / folder).iterdir()} == {*manifest["files"], file_format.MANIFEST}
    assert manifest["tensors"]["model.bias"] == "float64[40]"


@pytest.mark.parametrize("block", range(5))
def test_every_corruption_is_found(place: Place, folder: str, block: int) -> None:
    other = place.root / write(place, step=8, seed=1)
    for seed in range(block * 40, block * 40 + 40):
        broken = place.root / "broken"
        shutil.copytree(place.root / folder, broken)
        read(place.storage, broken.name)
        what = corrupt(broken, other, random.Random(seed))
        for check in (read, file_format.verify):
            with contextlib.suppress(file_format.Corrupt):
                check(place.storage, broken.name)
                raise AssertionError(f"seed {seed}: {what} was not found by {check.__name__}")
        shutil.rmtree(broken)


def read(storage: Storage, folder: str) -> object:
    return file_format.read(storage, folder, lambda _: {name: torch.zeros_like(t) for name, t in tensors().items()})


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


def test_the_manifest_itself_is_guarded(place: Place, folder: str) -> None:
    path = place.root / folder / file_format.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"files": {}}))
    with pytest.raises(file_format.Corrupt, match=r"manifest\.json"):
        file_format.verify(place.storage, folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model.weight": torch.empty(41, 30)}, r"model\.weight is float32\[40, 30\] there, and float32\[41, 30\] in"),
        ({"model.weight": torch.empty(40, 30).double()}, r"float32\[40, 30\] there, and float64\[40, 30\] in this"),
        ({"model.more": torch.empty(2)}, r"it has no model\.more, which is float32\[2\] in this model"),
        ({"empty": None}, r"it has empty \(float32\[0\]\), which this model has not"),
    ],
)
def test_another_model_is_told_apart(
    place: Place, folder: str, change: dict[str, torch.Tensor | None], says: str
) -> None:
    into = {name: t for name, t in (fresh() | change).items() if t is not None}
    with pytest.raises(file_format.Mismatch, match=says):
        file_format.read(place.storage, folder, lambda _: into)
