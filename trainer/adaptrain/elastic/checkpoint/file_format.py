"""One checkpoint as a folder of files, none of which can be silently wrong, and none of which is ever unpickled.

``tensors-<process>.safetensors`` hold the tensors, and load with plain safetensors; ``counters.json`` tells where
training was, ``metrics.jsonl`` how it got there (see ``history``). ``manifest.json`` is written last: what the
checkpoint is of, every other file's length and XXH3-128 digest, taken from the bytes as they were handed to the
storage, every tensor's type and shape, and where its parts are. The manifest's own digest is of its text with zeros in
the digest's place: it finds what storage has spoiled. With a key there are SHA-256 digests too, and an HMAC of the
manifest, so that it finds as well what another one has forged.
"""

import hashlib
import hmac
import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
import xxhash

from adaptrain.elastic.collectives.gather import gather_json
from adaptrain.elastic.state import history
from adaptrain.elastic.storage import tensor_file
from adaptrain.elastic.storage.directory import MANIFEST, Storage

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

COUNTERS = "counters.json"
FORMAT = 2
BLOCK = 1 << 22
UNSIGNED = "0" * 32
UNSEALED = "0" * 64
SMALL_LIMIT = 1 << 28
"""Bytes of a manifest, or of the counters."""
ROWS_LIMIT = 2 * history.MOST_BYTES
"""Bytes of the history."""


class Corrupt(Exception):
    """A checkpoint isn't what was written."""


class Mismatch(Exception):
    """A checkpoint is of another model or optimizer, or of another release's format."""


def write(
    storage: Storage,
    folder: str,
    tensors: dict[str, torch.Tensor],
    counters: dict[str, Any],
    savers: dist.ProcessGroup | None = None,
    of: dict[str, Any] | None = None,
    key: bytes | None = None,
    rows: str = "",
) -> bytes:
    """Write all files of a checkpoint but its manifest, which is returned. ``tensors`` are on the CPU.

    Args:
        savers: the processes that write it together, and all call this: each a file of its own with its shards of
            those tensors that are DTensors, and its share of the others. Who fails fails on all of them.
        of: what the checkpoint is of, in JSON.
        key: seals the manifest, so that who has not got it can't forge one.
        rows: the training's history.

    Raises:
        OSError: storage refused.
    """
    rank, size = (0, 1) if savers is None else (savers.rank(), savers.size())
    said: dict[str, Any] = {}
    try:
        said = _write_own(storage, folder, tensors, rank, size, key)
        if rank == 0:
            for name, text in ((COUNTERS, json.dumps(counters).encode()), (history.FILE, rows.encode())):
                if text:
                    with storage.create(f"{folder}/{name}") as stream:
                        stream.write(text)
                    said["files"][name] = _told(_Digest(key is not None, text))
    except OSError as error:
        if savers is None:
            raise
        said = {"error": str(error)}
    every = [said] if savers is None else gather_json(said, savers)
    if failed := next((one["error"] for one in every if "error" in one), None):
        raise OSError(failed)
    chunks: dict[str, list[Any]] = {name: [] for name in tensors}
    for one in every:
        for name, chunk in one["chunks"].items():
            chunks[name].append(chunk)
    manifest = {
        "format": FORMAT,
        "xxh3_128": UNSIGNED,
        **({"hmac_sha256": UNSEALED} if key is not None else {}),
        "step": counters["step"],
        "of": of or {},
        "files": dict(sorted((name, told) for one in every for name, told in one["files"].items())),
        "tensors": {name: _kind(t) for name, t in tensors.items()},
        "chunks": chunks,
    }
    text = json.dumps(manifest, indent=1).encode()
    if key is not None:
        text = text.replace(UNSEALED.encode(), _seal(text, key).encode(), 1)
    return text.replace(UNSIGNED.encode(), _digest(text).encode(), 1)


def verify(storage: Storage, folder: str, key: bytes | None = None) -> dict[str, Any]:
    """Read every file again and hold it against the manifest, which is returned.

    Raises:
        Corrupt: a file is missing, longer, shorter or different.
        Mismatch: it is of another format.
        OSError: storage refused.
    """
    manifest = manifest_of(storage, folder, key, cached=False)
    for name, expected in manifest["files"].items():
        with _verified(storage, f"{folder}/{name}", expected, key is not None, cached=False):
            pass
    return manifest


def read(
    storage: Storage,
    folder: str,
    room: Callable[[dict[str, Any]], dict[str, torch.Tensor]],
    key: bytes | None = None,
    cached: bool = True,
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Verify what is read of a checkpoint: whole files. Returns its tensors, on the CPU, and its counters.

    Args:
        room: gives, for the counters, a tensor of each shape and type; of a DTensor the local shard is read, however it
            was sharded there.
        cached: whether what the kernel remembers of the files will do.

    Raises:
        Corrupt: it isn't what was written.
        Mismatch: it is of another model, optimizer or format.
        OSError: storage refused.
    """
    manifest = manifest_of(storage, folder, key, cached)
    keyed = key is not None
    with _verified(storage, f"{folder}/{COUNTERS}", _expected(manifest, COUNTERS), keyed, cached) as file:
        text = file.rest(SMALL_LIMIT)
    try:
        counters = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{COUNTERS} can't be read: {error}") from None
    if not isinstance(counters, dict):
        raise Corrupt(f"{COUNTERS} holds no object")
    tensors = room(counters)
    _compare(manifest["tensors"], tensors)
    boxes = {name: _box(t) for name, t in tensors.items()}
    found = {name: torch.empty(boxes[name].shape, dtype=t.dtype) for name, t in tensors.items()}
    missing = {name: t.numel() for name, t in found.items()}
    wanted: dict[str, list[tuple[int, str, Box, Box]]] = {}
    for name, box in boxes.items():
        for file_name, at, chunk in _chunks(manifest, name, len(box.shape)):
            if (shared := box.shared(chunk)) is not None:
                wanted.setdefault(file_name, []).append((at, name, chunk, shared))
    for file_name, parts in sorted(wanted.items()):
        path, expected = f"{folder}/{file_name}", _expected(manifest, file_name)
        with _verified(storage, path, expected, keyed, cached) as file:
            for at, name, chunk, shared in sorted(parts, key=lambda part: part[0]):
                file.skip_to(at)
                _put(file, found[name], boxes[name], chunk, shared)
                missing[name] -= shared.numel
    if odd := next((name for name, left in missing.items() if left != 0), None):
        raise Corrupt(f"{odd} is not there as its manifest tells")
    return found, counters


def rows_of(storage: Storage, folder: str, key: bytes | None = None) -> str | None:
    """The training's history up to a checkpoint; None: it has none, as those of older releases.

    Raises:
        Corrupt: it isn't what was written.
        OSError: storage refused.
    """
    manifest = manifest_of(storage, folder, key)
    if history.FILE not in manifest["files"]:
        return None
    expected = _expected(manifest, history.FILE)
    length = expected.get("bytes")
    if type(length) is not int or not 0 <= length <= ROWS_LIMIT:
        raise Corrupt(f"{history.FILE} has {length!r:.50} bytes, and at most {ROWS_LIMIT} are read")
    with _verified(storage, f"{folder}/{history.FILE}", expected, key is not None) as file:
        text = file.rest(length)
    try:
        rows = text.decode("ascii")
        history.check(rows, manifest["step"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Corrupt(f"{history.FILE} can't be read: {error}") from None
    return rows


def manifest_of(storage: Storage, folder: str, key: bytes | None = None, cached: bool = True) -> dict[str, Any]:
    """A checkpoint's manifest.

    Raises:
        Corrupt: it is missing, isn't what was written, or isn't sealed with the key.
        Mismatch: it is of another format.
        OSError: storage refused.
    """
    try:
        with storage.open(f"{folder}/{MANIFEST}", cached) as file:
            text = file.read(SMALL_LIMIT)
        manifest: dict[str, Any] = json.loads(text)
        digest = str(manifest["xxh3_128"])
        unsigned = text.replace(digest.encode(), UNSIGNED.encode(), 1)
        if digest != _digest(unsigned):
            raise Corrupt(f"{MANIFEST} has digest {_digest(unsigned)}, not {digest}")
        if manifest["format"] != FORMAT:
            raise Mismatch(
                f"its {MANIFEST} is of format {manifest['format']}, and this release reads format {FORMAT} only (format"
                " 1 was of releases that unpickled what they read): go on with the release that wrote it, or start anew"
                " in an empty folder, from its best weights (initialWeights) if there are any"
            )
        if key is not None:
            seal = str(manifest.get("hmac_sha256", ""))
            unsealed = unsigned.replace(seal.encode(), UNSEALED.encode(), 1) if seal else unsigned
            if not hmac.compare_digest(seal, _seal(unsealed, key)):
                raise Corrupt(f"{MANIFEST} is not sealed with this job's key")
        if not all(isinstance(manifest[part], dict) for part in ("files", "tensors", "chunks")):
            raise Corrupt(f"{MANIFEST} tells no files, tensors or chunks")
        if not all(isinstance(told, dict) for told in manifest["files"].values()):
            raise Corrupt(f"{MANIFEST} tells nothing of a file")
    except FileNotFoundError:
        raise Corrupt(f"{MANIFEST} is missing") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Corrupt(f"{MANIFEST} can't be read: {error}") from None
    return manifest


def reason(error: BaseException) -> str:
    """The last line of an error."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


@dataclass(frozen=True)
class Box:
    """A part of a tensor."""

    begin: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return prod(self.shape)

    def shared(self, other: "Box") -> "Box | None":
        """What two parts of one tensor have in common; None: nothing."""
        begin = tuple(map(max, self.begin, other.begin))
        ends = (min(a + n, b + m) for a, n, b, m in zip(self.begin, self.shape, other.begin, other.shape, strict=True))
        shape = tuple(end - at for at, end in zip(begin, ends, strict=True))
        return Box(begin, shape) if all(length > 0 for length in shape) else None

    def within(self, other: "Box", t: torch.Tensor) -> torch.Tensor:
        """This part of a tensor that holds the other one."""
        for dimension, (at, begin, length) in enumerate(zip(self.begin, other.begin, self.shape, strict=True)):
            t = t.narrow(dimension, at - begin, length)
        return t


def _is_shard(t: torch.Tensor) -> bool:
    """Whether it is a DTensor.

    Importing torch.distributed.tensor takes a fourth of torch's own import, and without it there is no DTensor.
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(t, module.DTensor)


def _box(t: torch.Tensor) -> Box:
    """The part of a whole tensor that this process holds."""
    if not _is_shard(t):
        return Box((0,) * t.dim(), tuple(t.shape))
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    sharded = cast("DTensor", t)
    shape, begin = compute_local_shape_and_global_offset(sharded.shape, sharded.device_mesh, sharded.placements)
    return Box(tuple(begin), tuple(shape))


def _write_own(
    storage: Storage, folder: str, tensors: dict[str, torch.Tensor], rank: int, size: int, key: bytes | None
) -> dict[str, Any]:
    """Write the file of one of the processes that save together."""
    whole = {name: t for name, t in tensors.items() if not _is_shard(t)}
    mine = {name: t for name, t in whole.items() if _writer(whole, size)[name] == rank} if size > 1 else whole
    shards = {name: cast("DTensor", t).to_local() for name, t in tensors.items() if _is_shard(t) and _box(t).numel}
    own = mine | shards
    if not own:
        return {"files": {}, "chunks": {}}
    file, boxes = f"tensors-{rank}.safetensors", {name: _box(tensors[name]) for name in own}
    digest = _Digest(key is not None)
    # By its key torch.distributed.checkpoint's reader of safetensors knows shards.
    sharding = {name: {"saved_offsets": list(box.begin)} for name, box in boxes.items()}
    with storage.create(f"{folder}/{file}") as stream:
        metadata = {"format": "pt", "DCP_SHARDING_INFO": json.dumps(sharding)}
        begins = tensor_file.write(_Written(stream, digest), own, metadata)  # type: ignore[arg-type]
    chunks = {name: [file, begins[name], list(box.begin), list(box.shape)] for name, box in boxes.items()}
    return {"files": {file: _told(digest)}, "chunks": chunks}


def _writer(tensors: dict[str, torch.Tensor], size: int) -> dict[str, int]:
    """Which of the processes writes each tensor that all have: the same answer on all of them."""
    loads, writer = [0] * size, {}
    for name, t in sorted(tensors.items(), key=lambda item: (-item[1].nbytes, item[0])):
        writer[name] = loads.index(min(loads))
        loads[writer[name]] += t.nbytes
    return writer


def _chunks(manifest: dict[str, Any], name: str, dimensions: int) -> Iterator[tuple[str, int, Box]]:
    """File, place in it, and part of the tensor. The shape of the tensor itself has been compared before."""
    try:
        for file, at, begin, shape in manifest["chunks"][name]:
            numbers = [at, *begin, *shape]
            known = all(type(number) is int and 0 <= number < 1 << 48 for number in numbers)
            if not known or not len(begin) == len(shape) == dimensions:
                raise ValueError(f"{numbers} are no places")
            yield str(file), at, Box(tuple(begin), tuple(shape))
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{MANIFEST} can't be read: chunks of {name}: {error}") from None


def _expected(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    expected = manifest["files"].get(name)
    if not isinstance(expected, dict):
        raise Corrupt(f"{MANIFEST} tells nothing of {name}")
    return expected


def _put(file: "_Read", into: torch.Tensor, box: Box, chunk: Box, shared: Box) -> None:
    """Read a chunk, and keep what is shared with the part of the tensor that is wanted."""
    if box == chunk:
        file.fill(tensor_file.bytes_of(into))
        return
    file.limit(chunk.numel * into.element_size())
    part = torch.empty(chunk.shape, dtype=into.dtype)
    file.fill(tensor_file.bytes_of(part))
    shared.within(box, into).copy_(shared.within(chunk, part))


@contextmanager
def _verified(
    storage: Storage, path: str, expected: dict[str, Any], keyed: bool, cached: bool = True
) -> Iterator["_Read"]:
    """A file to read, which is held against what the manifest says of it when the context ends.

    Raises:
        Corrupt: it is missing, longer, shorter or different.
    """
    name = Path(path).name
    if path.count("/") != 1 or name in ("", ".", ".."):
        raise Corrupt(f"{MANIFEST} names a file that is not in its folder")
    try:
        stream = storage.open(path, cached)
    except FileNotFoundError:
        raise Corrupt(f"{name} is missing") from None
    with stream:
        read = _Read(stream, name, expected, keyed)
        try:
            yield read
        except OSError:
            raise
        except Exception:  # perhaps since it read what was not written
            read.check()
            raise
        read.check()


def _digest(data: bytes) -> str:
    return xxhash.xxh3_128(data).hexdigest()


def _seal(text: bytes, key: bytes) -> str:
    return hmac.new(key, text, "sha256").hexdigest()


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
    """Digests and length of what goes through.

    Args:
        keyed: whether there is to be one that nobody can forge as well.
    """

    def __init__(self, keyed: bool, data: bytes = b"") -> None:
        self._hash = xxhash.xxh3_128()
        self._strong = hashlib.sha256() if keyed else None
        self.length = 0
        self.add(data)

    def add(self, data: Any) -> None:
        self._hash.update(data)
        if self._strong is not None:
            self._strong.update(data)
        self.length += memoryview(data).nbytes

    def hexdigests(self) -> dict[str, str]:
        strong = {} if self._strong is None else {"sha256": self._strong.hexdigest()}
        return {"xxh3_128": self._hash.hexdigest()} | strong


def _told(digest: _Digest) -> dict[str, Any]:
    """What a manifest tells of a file."""
    return {"bytes": digest.length, **digest.hexdigests()}


class _Written:
    """A stream that is only ever appended to, and what went through it. The storage ends it."""

    def __init__(self, stream: IO[bytes], digest: _Digest) -> None:
        self._stream = stream
        self._digest = digest

    def write(self, data: Any) -> int:
        self._digest.add(data)
        return self._stream.write(data)


class _Read:
    """A file that is read once, from its beginning to its end, and what came out of it."""

    def __init__(self, stream: io.BufferedReader, name: str, expected: dict[str, Any], keyed: bool) -> None:
        self._stream = stream
        self._name = name
        self._expected = expected
        self._digest = _Digest(keyed)

    def skip_to(self, at: int) -> None:
        """Pass over what comes before."""
        while (skip := at - self._digest.length) > 0 and self._next(bytearray(min(skip, BLOCK))):
            pass
        if at != self._digest.length:
            raise Corrupt(f"{self._name} is not there as its manifest tells")

    def limit(self, count: int) -> None:
        """Nothing that is longer than the whole file is given memory."""
        if not isinstance(length := self._expected.get("bytes"), int) or count > length:
            raise Corrupt(f"{self._name} is shorter than one of its chunks")

    def fill(self, into: memoryview) -> None:
        """Read what comes next; what the file hasn't got is found when all of it is checked."""
        self._next(into)

    def rest(self, most: int) -> bytes:
        """All that was not read yet."""
        parts: list[bytes] = []
        while self._digest.length < most and (part := bytes(self._next(bytearray(BLOCK)))):
            parts.append(part)
        return b"".join(parts)

    def check(self) -> None:
        """Read what is left, and hold all of it against the manifest."""
        block = bytearray(BLOCK)
        while self._next(block):
            pass
        if self._digest.length != self._expected.get("bytes"):
            raise Corrupt(f"{self._name} has {self._digest.length} bytes, not {self._expected.get('bytes')}")
        for kind, found in self._digest.hexdigests().items():
            if found != self._expected.get(kind):
                raise Corrupt(f"{self._name} has digest {found}, not {self._expected.get(kind)}")

    def _next(self, into: bytearray | memoryview) -> memoryview:
        data, read = memoryview(into), 0
        while count := self._stream.readinto(data[read : read + BLOCK]):
            self._digest.add(data[read : read + count])
            read += count
        return data[:read]
