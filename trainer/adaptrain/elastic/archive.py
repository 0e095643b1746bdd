"""One checkpoint as a folder of files, none of which can be silently wrong.

``.metadata`` and ``*.distcp`` are torch.distributed.checkpoint's and load with plain torch; ``counters.json`` tells
where training was. ``manifest.json`` is written last: every other file's length and XXH3-128 digest, taken from the
bytes as they were handed to the storage, and every tensor's type and shape. The manifest's own digest is of its text
with zeros in the digest's place.
"""

import io
import json
import os
import sys
import warnings
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch
import torch.distributed as dist
import xxhash

from adaptrain.elastic.storage import MANIFEST, Storage

# One process saves and loads for all: that is meant.
warnings.filterwarnings("ignore", message=".*assuming the intent is to (save|load) in a single process")

COUNTERS = "counters.json"
FORMAT = 1
BLOCK = 1 << 22
UNSIGNED = "0" * 32


class Corrupt(Exception):
    """A checkpoint isn't what was written."""


class Mismatch(Exception):
    """A checkpoint is of another model or optimizer."""


def write(
    storage: Storage,
    folder: str,
    tensors: dict[str, torch.Tensor],
    counters: dict[str, Any],
    savers: dist.ProcessGroup | None = None,
) -> bytes:
    """Write all files of a checkpoint but its manifest, which is returned. ``tensors`` are on the CPU.

    Args:
        savers: the processes that write it together, and all call this: each a file of its own with its shards of
            those tensors that are DTensors, and its share of the others. Who fails fails on all of them.

    Raises:
        OSError: storage refused.
    """
    # Imported here: it takes as long as the rest of torch, and a worker that joins does not need it.
    from torch.distributed.checkpoint import CheckpointException, FileSystemWriter, Metadata, save
    from torch.distributed.checkpoint.filesystem import FileSystem
    from torch.distributed.checkpoint.storage import WriteResult

    digests: dict[str, _Digest] = {}

    class Files(FileSystem):
        """What torch asks of a file system, of a folder that is new."""

        @contextmanager
        def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
            with storage.create(str(path)) as stream:
                yield _Written(stream, digests.setdefault(Path(path).name, _Digest()))

        def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
            storage.rename(str(path), str(new_path))
            digests[Path(new_path).name] = digests.pop(Path(path).name)

        def mkdir(self, path: str | os.PathLike[str]) -> None:
            pass

        def exists(self, path: str | os.PathLike[str]) -> bool:
            return False

    class Writer(FileSystemWriter):
        """Writes the counters after everything else."""

        def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
            super().finish(metadata, results)
            with storage.create(f"{folder}/{COUNTERS}") as stream:
                _Written(stream, digests.setdefault(COUNTERS, _Digest())).write(json.dumps(counters).encode())

    writer = Writer(folder, sync_files=False)  # the storage's own files are durable
    writer.fs = Files()
    try:
        save(tensors, storage_writer=writer, process_group=savers, no_dist=savers is None)
    except CheckpointException as error:  # no Exception, for a reason that nobody knows
        cause = _cause(error)
        raise cause if isinstance(cause, OSError) else OSError(reason(cause)) from error
    written = [{name: {"bytes": d.length, "xxh3_128": d.hexdigest()} for name, d in digests.items()}]
    if savers is not None:
        written *= savers.size()
        dist.all_gather_object(written, written[0], savers)
    files = {name: told for some in written for name, told in some.items()}
    manifest = {
        "format": FORMAT,
        "xxh3_128": UNSIGNED,
        "step": counters["step"],
        "files": dict(sorted(files.items())),
        "tensors": {name: _kind(t) for name, t in tensors.items()},
    }
    unsigned = json.dumps(manifest, indent=1).encode()
    return unsigned.replace(UNSIGNED.encode(), _digest(unsigned).encode(), 1)


def verify(storage: Storage, folder: str) -> dict[str, Any]:
    """Read every file again and hold it against the manifest, which is returned.

    Raises:
        Corrupt: a file is missing, longer, shorter or different.
        OSError: storage refused.
    """
    manifest = _manifest(storage, folder)
    for name, expected in manifest["files"].items():
        with _verified(storage, f"{folder}/{name}", expected, cached=False):
            pass
    return manifest


def read(
    storage: Storage, folder: str, tensors: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Verify what is read of a checkpoint: whole files. Returns its tensors, on the CPU, and its counters.

    Args:
        tensors: one of each shape and type; of a DTensor the local shard is read, however it was sharded there.

    Raises:
        Corrupt: it isn't what was written.
        Mismatch: it is of another model or optimizer.
        OSError: storage refused.
    """
    from torch.distributed.checkpoint import CheckpointException, FileSystemReader, load
    from torch.distributed.checkpoint.filesystem import FileSystem
    from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem

    manifest = _manifest(storage, folder)
    small: dict[str, bytes] = {}
    for name, expected in manifest["files"].items():
        if not name.endswith(".distcp"):
            with _verified(storage, f"{folder}/{name}", expected) as file:
                small[name] = file.rest()
    _compare(manifest["tensors"], tensors)

    class Files(FileSystem):
        @contextmanager
        def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
            name = Path(path).name
            if name in small:
                yield io.BytesIO(small[name])
                return
            with (
                _verified(storage, str(path), manifest["files"][name]) as file,
                closing(_ahead(file.parts(places[name]))) as parts,
            ):
                yield parts

    places: dict[str, list[tuple[int, int]]] = {}
    found = {name: _local(t) for name, t in tensors.items()}
    missing = {name: t.numel() for name, t in found.items()}

    def put(item: ReadItem, saved: torch.Tensor) -> None:
        into = found[name := item.dest_index.fqn]
        if saved.dtype != into.dtype:
            raise Corrupt(f"{name} is not there as its manifest tells")
        missing[name] -= item.lengths.numel()
        if saved.shape == into.shape == item.lengths:
            found[name] = saved
            return
        for dimension, length in enumerate(item.lengths):
            saved = saved.narrow(dimension, item.storage_offsets[dimension], length)
            into = into.narrow(dimension, item.dest_offsets[dimension], length)
        into.copy_(saved)

    class Reader(FileSystemReader):
        """Takes the tensors in the order in which they lie in their files, the next one while one is looked at, and
        keeps what is whole in the memory into which it was unpacked."""

        def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Any:
            items: dict[str, list[tuple[int, int, ReadItem]]] = {}
            for item in plan.items:
                at = self.storage_data[item.storage_index]
                items.setdefault(at.relative_path, []).append((at.offset, at.length, item))
            for file, parts in sorted(items.items()):
                parts.sort(key=lambda part: part[0])
                places[file] = [(offset, length) for offset, length, _ in parts]
                with self.fs.create_stream(f"{folder}/{file}", "rb") as stream:
                    for _, _, item in parts:
                        part = cast(IO[bytes], _Part(cast(memoryview, next(stream))))
                        put(item, torch.load(part, map_location="cpu", weights_only=True))
            done: torch.futures.Future[None] = torch.futures.Future()
            done.set_result(None)
            return done

    reader = Reader(folder)
    reader.fs = Files()
    try:
        load(tensors, storage_reader=reader, no_dist=True)
    except (Exception, CheckpointException) as error:
        cause = _cause(error)
        raise cause if isinstance(cause, (Corrupt, OSError)) else Corrupt(reason(cause)) from error
    if odd := next((name for name, left in missing.items() if left != 0), None):
        raise Corrupt(f"{odd} is not there as its manifest tells")
    return found, json.loads(small[COUNTERS])


def reason(error: BaseException) -> str:
    """The last line of an error."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def _cause(error: BaseException) -> BaseException:
    """What torch wraps in a story of its own."""
    failures = getattr(error, "failures", None)
    return next(iter(failures.values()))[0] if failures else error


def _manifest(storage: Storage, folder: str) -> dict[str, Any]:
    try:
        with storage.open(f"{folder}/{MANIFEST}") as file:
            text = file.read()
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


@contextmanager
def _verified(storage: Storage, path: str, expected: dict[str, Any], cached: bool = True) -> Iterator["_Read"]:
    """A file to read, which is held against what the manifest says of it when the context ends.

    Raises:
        Corrupt: it is missing, longer, shorter or different.
    """
    name = Path(path).name
    try:
        stream = storage.open(path, cached)
    except FileNotFoundError:
        raise Corrupt(f"{name} is missing") from None
    with stream:
        read = _Read(stream)
        try:
            yield read
        except OSError:
            raise
        except Exception:  # perhaps since it read what was not written
            read.check(name, expected)
            raise
        read.check(name, expected)


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
    """A stream that is only ever appended to, and what went through it. The storage ends it."""

    def __init__(self, stream: IO[bytes], digest: _Digest) -> None:
        self._stream = stream
        self._digest = digest

    def write(self, data: Any) -> int:
        self._digest.add(data)
        return self._stream.write(data)

    def tell(self) -> int:
        return self._digest.length

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Read:
    """A file that is read once, from its beginning to its end, and what came out of it."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream
        self._digest = _Digest()

    def parts(self, places: Iterable[tuple[int, int]]) -> Iterator[memoryview]:
        """The bytes at each place (offset, length), in order; fewer if the file ends. Good for one turn more."""
        buffers = [bytearray(), bytearray()]
        for offset, length in places:
            while (skip := offset - self._digest.length) and self._next(bytearray(min(skip, BLOCK))):
                pass
            buffers.reverse()
            if len(buffers[0]) < length:
                buffers[0] = bytearray(length)
            yield self._next(memoryview(buffers[0])[:length])

    def rest(self) -> bytes:
        """All that was not read yet."""
        return b"".join(iter(lambda: bytes(self._next(bytearray(BLOCK))), b""))

    def check(self, name: str, expected: dict[str, Any]) -> None:
        """Read what is left, and hold all of it against the manifest."""
        block = bytearray(BLOCK)
        while self._next(block):
            pass
        if self._digest.length != expected["bytes"]:
            raise Corrupt(f"{name} has {self._digest.length} bytes, not {expected['bytes']}")
        if self._digest.hexdigest() != expected["xxh3_128"]:
            raise Corrupt(f"{name} has digest {self._digest.hexdigest()}, not {expected['xxh3_128']}")

    def _next(self, into: bytearray | memoryview) -> memoryview:
        data, read = memoryview(into), 0
        while count := self._stream.readinto(data[read : read + BLOCK]):
            self._digest.add(data[read : read + count])
            read += count
        return data[:read]


def _ahead(items: Iterator[memoryview]) -> Generator[memoryview, None, None]:
    """The same items, each made by a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(next, items, None)
        while (item := made.result()) is not None:
            made = pool.submit(next, items, None)
            yield item


class _Part(io.RawIOBase):
    """A part of a file, in memory that is used again: a BytesIO would be a copy."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._data[self._at : self._at + len(buffer)]
        if part:  # torch's copy lets the thread go on that reads ahead, a memoryview's does not
            torch.frombuffer(buffer, dtype=torch.uint8)[: len(part)].copy_(torch.frombuffer(part, dtype=torch.uint8))
        self._at += len(part)
        return len(part)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, len(self._data))[whence]
        return self._at

    def tell(self) -> int:
        return self._at


def _local(t: torch.Tensor) -> torch.Tensor:
    """Of a DTensor the shard that is here, else the whole tensor.

    Importing torch.distributed.tensor takes a fourth of torch's own import, and without it there is no DTensor.
    """
    module = sys.modules.get("torch.distributed.tensor")
    return cast(torch.Tensor, t.to_local()) if module is not None and isinstance(t, module.DTensor) else t
