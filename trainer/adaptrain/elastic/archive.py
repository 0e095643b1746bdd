"""One checkpoint as a folder of files, none of which can be silently wrong.

``.metadata`` and ``*.distcp`` are torch.distributed.checkpoint's and load with plain torch; ``counters.json`` tells
where training was. ``manifest.json`` is written last: every other file's length and XXH3-128 digest, taken from the
bytes as they were handed to the file system, and every tensor's type and shape. The manifest's own digest is of its
text with zeros in the digest's place.
"""

import json
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch
import xxhash

# One process saves and loads for all: that is meant.
warnings.filterwarnings("ignore", message=".*assuming the intent is to (save|load) in a single process")

MANIFEST = "manifest.json"
COUNTERS = "counters.json"
FORMAT = 1
BLOCK = 1 << 22
UNSIGNED = "0" * 32


class Corrupt(Exception):
    """A checkpoint isn't what was written."""


class Mismatch(Exception):
    """A checkpoint is of another model or optimizer."""


def write(folder: Path, tensors: dict[str, torch.Tensor], counters: dict[str, Any]) -> None:
    """Write a checkpoint and sync all of its files. ``tensors`` are on the CPU.

    Raises:
        OSError: storage refused.
    """
    # Imported here: it takes as long as the rest of torch, and a worker that joins does not need it.
    from torch.distributed.checkpoint import CheckpointException, FileSystemWriter, save
    from torch.distributed.checkpoint.filesystem import FileSystem

    digests: dict[str, _Digest] = {}

    class DigestingFileSystem(FileSystem):
        @contextmanager
        def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
            with super().create_stream(path, mode) as stream:
                yield _Written(cast(IO[bytes], stream), digests.setdefault(Path(path).name, _Digest()))

        def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
            super().rename(path, new_path)
            digests[Path(new_path).name] = digests.pop(Path(path).name)

    writer = FileSystemWriter(folder, sync_files=True)
    writer.fs = DigestingFileSystem()
    try:
        save(tensors, storage_writer=writer, no_dist=True)
    except CheckpointException as error:  # no Exception, for a reason that nobody knows
        raise OSError(reason(error)) from error
    text = json.dumps(counters).encode()
    _write(folder / COUNTERS, text)
    digests[COUNTERS] = _Digest()
    digests[COUNTERS].add(text)
    manifest = {
        "format": FORMAT,
        "xxh3_128": UNSIGNED,
        "step": counters["step"],
        "files": {name: {"bytes": d.length, "xxh3_128": d.hexdigest()} for name, d in sorted(digests.items())},
        "tensors": {name: _kind(t) for name, t in tensors.items()},
    }
    unsigned = json.dumps(manifest, indent=1).encode()
    _write(folder / MANIFEST, unsigned.replace(UNSIGNED.encode(), _digest(unsigned).encode(), 1))


def verify(folder: Path) -> dict[str, Any]:
    """Read every file and hold it against the manifest, which is returned.

    Raises:
        Corrupt: a file is missing, longer, shorter or different.
    """
    manifest = _manifest(folder)
    _verify(folder, manifest["files"])
    return manifest


def read(folder: Path, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Verify a checkpoint and copy it into ``tensors``, which are on the CPU; returns the counters.

    Raises:
        Corrupt: it isn't what was written; the tensors hold nothing that can be used.
        Mismatch: it is of another model or optimizer.
    """
    from torch.distributed.checkpoint import CheckpointException, FileSystemReader, load

    manifest = _manifest(folder)
    files = manifest["files"]
    large = {name: expected for name, expected in files.items() if name.endswith(".distcp")}
    _verify(folder, {name: expected for name, expected in files.items() if name not in large})
    _compare(manifest["tensors"], tensors)
    with ThreadPoolExecutor(1) as pool:  # the tensors' files are digested while they are read
        verified = pool.submit(_verify, folder, large)
        try:
            load(tensors, storage_reader=FileSystemReader(folder), no_dist=True)
        except (Exception, CheckpointException) as error:
            verified.result()
            raise Corrupt(reason(error)) from error
        verified.result()
    counters: dict[str, Any] = json.loads((folder / COUNTERS).read_bytes())
    return counters


def reason(error: BaseException) -> str:
    """The last line of an error: torch wraps the cause in a story of its own."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def sync(path: Path) -> None:
    """Bring a file or folder to the disk; some network file systems can't do it for a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(handle)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        text = (folder / MANIFEST).read_bytes()
        manifest: dict[str, Any] = json.loads(text)
        digest = manifest["xxh3_128"]
        unsigned = text.replace(str(digest).encode(), UNSIGNED.encode(), 1)
    except FileNotFoundError:
        raise Corrupt(f"{MANIFEST} is missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{MANIFEST} can't be read: {error}") from None
    if digest != _digest(unsigned):
        raise Corrupt(f"{MANIFEST} has digest {_digest(unsigned)}, not {digest}")
    if manifest["format"] != FORMAT:
        raise Corrupt(f"{MANIFEST} is of format {manifest['format']}, and this version reads {FORMAT}")
    return manifest


def _verify(folder: Path, files: dict[str, Any]) -> None:
    block = bytearray(BLOCK)
    view = memoryview(block)
    for name, expected in files.items():
        digest = _Digest()
        try:
            with (folder / name).open("rb", buffering=0) as file:
                while count := file.readinto(block):
                    digest.add(view[:count])
        except FileNotFoundError:
            raise Corrupt(f"{name} is missing") from None
        if digest.length != expected["bytes"]:
            raise Corrupt(f"{name} has {digest.length} bytes, not {expected['bytes']}")
        if digest.hexdigest() != expected["xxh3_128"]:
            raise Corrupt(f"{name} has digest {digest.hexdigest()}, not {expected['xxh3_128']}")


def _digest(data: bytes) -> str:
    return xxhash.xxh3_128(data).hexdigest()


def _compare(saved: dict[str, str], tensors: dict[str, torch.Tensor]) -> None:
    for name, t in tensors.items():
        if name not in saved:
            raise Mismatch(f"it has no {name}, which is {_kind(t)} in this model")
        if saved[name] != _kind(t):
            raise Mismatch(f"{name} is {saved[name]} there, and {_kind(t)} in this model")
    if extra := sorted(set(saved) - set(tensors)):
        raise Mismatch(f"it has {extra[0]} ({saved[extra[0]]}), which this model has not")


def _kind(t: torch.Tensor) -> str:
    return f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}"


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    sync(path)


class _Digest:
    def __init__(self) -> None:
        self._hash = xxhash.xxh3_128()
        self.length = 0

    def add(self, data: Any) -> None:
        self._hash.update(data)
        self.length += memoryview(data).nbytes

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


class _Written:
    """A stream that is only ever appended to, and what went through it."""

    def __init__(self, stream: IO[bytes], digest: _Digest) -> None:
        self._stream = stream
        self._digest = digest

    def write(self, data: Any) -> int:
        self._digest.add(data)
        return self._stream.write(data)

    def __getattr__(self, name: str) -> Any:
        if name in ("seek", "truncate", "writelines"):
            raise AttributeError(f"{name}: what was written would not be what was digested")
        return getattr(self._stream, name)
