"""A checkpoint that several processes write together, each its shards, is read by any number, and never wrongly."""

import random
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import IO, Any

import pytest
import torch
import torch.distributed as dist
from adaptrain.elastic.checkpoint import file_format
from adaptrain.elastic.storage.directory import Directory
from adaptrain.local.processes import forkserver_context
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from tests.unit.elastic.checkpoint.test_archive import COUNTERS, corrupt, tensors

NAME = f"step-{COUNTERS['step']:010d}.{(1 << 32) + 1}"
SHARDED = ("model.weight", "model.bias", "narrow")
Act = Callable[[int, Directory], Any]


def whole(seed: int = 0) -> dict[str, torch.Tensor]:
    """With a tensor of which the third of three processes has nothing."""
    return {**tensors(seed), "narrow": torch.tensor([[seed + 1.0], [seed + 2.0]])}


def parts(of: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {n: distribute_tensor(t, mesh, [Shard(0)]) if n in SHARDED else t for n, t in of.items()}


def locals_of(of: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: t.to_local() if isinstance(t, DTensor) else t for n, t in of.items()}


def write(rank: int, storage: Directory, seed: int = 0) -> str | None:
    begun = [storage.begin(NAME) if rank == 0 else None]
    dist.broadcast_object_list(begun)
    (folder,) = begun
    assert folder is not None
    manifest = file_format.write(storage, folder, parts(whole(seed)), COUNTERS, dist.group.WORLD)
    return storage.commit(folder, NAME, manifest, lambda: None) if rank == 0 else None


def read(rank: int, storage: Directory) -> bool:
    mine = parts(whole())
    found, counters = file_format.read(storage, NAME, lambda _: {name: torch.zeros_like(t) for name, t in mine.items()})
    return counters == COUNTERS and all(torch.equal(found[name], t) for name, t in locals_of(mine).items())


def read_corrupted(rank: int, storage: Directory) -> list[str]:
    """What was done to checkpoints that all processes took for good ones."""
    root, missed = Path(str(storage)), []
    for seed in range(60):
        done = [""]
        if rank == 0:
            shutil.copytree(root / "good", root / NAME)
            done = [corrupt(root / NAME, root / "other" / NAME, random.Random(seed))]
        dist.broadcast_object_list(done)
        found: list[bool | None] = [None] * dist.get_world_size()
        try:
            read(rank, storage)
            dist.all_gather_object(found, False)
        except file_format.Corrupt:
            dist.all_gather_object(found, True)
        missed += [] if any(found) else done
        if rank == 0:
            shutil.rmtree(root / NAME)
    return missed


class Full(Directory):
    """Has no room for what the second process writes."""

    def create(self, path: str) -> AbstractContextManager[IO[bytes]]:
        if "tensors-1" in path:
            raise OSError(28, "No space left on device")
        return super().create(path)


def write_in_vain(rank: int, storage: Directory) -> str:
    try:
        write(rank, Full(Path(str(storage))))
    except OSError as error:
        return str(error)
    return "written"


def one_of_many(act: Act, rank: int, size: int, path: Path, said: Connection) -> None:
    dist.init_process_group("gloo", init_method=f"file://{path}/meet-{size}-{act.__name__}", rank=rank, world_size=size)
    said.send(act(rank, Directory(path)))
    dist.destroy_process_group()


def together(act: Act, size: int, path: Path) -> list[Any]:
    """What each of so many processes returns."""
    running = []
    for rank in range(size):
        ours, theirs = Pipe(duplex=False)
        process = forkserver_context().Process(target=one_of_many, args=(act, rank, size, path, theirs), daemon=True)
        process.start()
        theirs.close()
        running.append((process, ours))
    said = [ours.recv() for _, ours in running]
    for process, _ in running:
        process.join()
    return said


@pytest.fixture
def written(tmp_path: Path) -> Path:
    together(write, 3, tmp_path)
    return tmp_path


def test_each_process_writes_its_own_file(written: Path) -> None:
    manifest = file_format.verify(Directory(written), NAME)
    files = {path.name for path in (written / NAME).iterdir()}
    assert files == {*manifest["files"], file_format.MANIFEST}
    assert {"tensors-0.safetensors", "tensors-1.safetensors", "tensors-2.safetensors"} < files
    assert manifest["tensors"]["model.weight"] == "float32[40, 30]"


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_any_number_of_processes_reads_it(written: Path, size: int) -> None:
    assert together(read, size, written) == [True] * size


def test_a_process_that_has_no_shards_reads_it(written: Path) -> None:
    found, _ = file_format.read(
        Directory(written), NAME, lambda _: {n: torch.zeros_like(t) for n, t in whole().items()}
    )
    assert all(torch.equal(found[name], t) for name, t in whole().items())


def other(rank: int, storage: Directory) -> str | None:
    return write(rank, Directory(Path(str(storage)) / "other"), seed=1)


def test_every_corruption_is_found_by_somebody(written: Path) -> None:
    together(other, 3, written)
    (written / NAME).rename(written / "good")
    assert together(read_corrupted, 2, written) == [[], []]


def test_who_fails_fails_on_all(tmp_path: Path) -> None:
    assert together(write_in_vain, 3, tmp_path) == ["[Errno 28] No space left on device"] * 3
    assert not Directory(tmp_path).saved()
