"""Tensors in a safetensors file, written to and read from a stream, and never more of it in memory than is asked for.

The format is eight bytes with the header's length, the header (JSON: each tensor's type, shape and place), and the
tensors' bytes: https://github.com/huggingface/safetensors#format. safetensors' own functions want a path or the whole
file in memory, and tell a full disk as an error of the format.
"""

import io
import json
from collections.abc import Iterator, Mapping
from math import prod
from typing import IO, Any

import torch

BLOCK = 1 << 24
"""Bytes that are written at once."""
HEADER_LIMIT = 100_000_000
"""Bytes of a header, as in safetensors."""
TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.bool: "BOOL",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
NAMED = {name: type for type, name in TYPES.items()}


class Malformed(Exception):
    """What was read is no safetensors file."""


def layout(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """All of a file that comes before the tensors' bytes, and where in the file each tensor begins.

    A tensor of a type that the format has not (complex128) is told as bytes, with one more dimension.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    begins, at = {}, 0
    # The widest first: so all are aligned.
    for name, t in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        begins[name], end = at, at + t.nbytes
        shape = [*t.shape] if t.dtype in TYPES else [*t.shape, t.element_size()]
        header[name] = {"dtype": TYPES.get(t.dtype, "U8"), "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    front = len(text).to_bytes(8, "little") + text
    return front, {name: len(front) + begin for name, begin in begins.items()}


def write(stream: IO[bytes], tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> dict[str, int]:
    """Write a whole file. Returns where in it each tensor begins.

    Raises:
        OSError: storage refused.
    """
    front, begins = layout(tensors, metadata)
    stream.write(front)
    for name in begins:
        data = bytes_of(tensors[name].detach().cpu().contiguous())
        for at in range(0, len(data), BLOCK):
            stream.write(data[at : at + BLOCK])
    return begins


def read(stream: io.BufferedReader) -> dict[str, torch.Tensor]:
    """All tensors of a file.

    Raises:
        Malformed: it is no such file.
        OSError: it can't be read now.
    """
    found = {}
    at = 0
    for name, type, shape, begin, end in _entries(_exactly(stream, _length(stream))):
        if begin != at:
            raise Malformed(f"{name} begins at byte {begin}, not {at}")
        t = torch.empty(0, dtype=type)
        if end - begin != prod(shape) * t.element_size():
            raise Malformed(f"{name} has {end - begin} bytes, not those of {shape}")
        data = bytearray()
        while len(data) < end - begin and (part := stream.read(min(BLOCK, end - begin - len(data)))):
            data += part
        if len(data) != end - begin:
            raise Malformed(f"it ends in the middle of {name}")
        found[name] = torch.frombuffer(data, dtype=type).view(shape) if data else torch.empty(shape, dtype=type)
        at = end
    if stream.read(1):
        raise Malformed("there is more behind its last tensor")
    return found


def bytes_of(t: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return memoryview(t.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def _length(stream: io.BufferedReader) -> int:
    length = int.from_bytes(_exactly(stream, 8), "little")
    if length > HEADER_LIMIT:
        raise Malformed(f"its header would have {length} bytes")
    return length


def _exactly(stream: io.BufferedReader, count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise Malformed("it is too short")
    return data


def _entries(header: bytes) -> Iterator[tuple[str, torch.dtype, list[int], int, int]]:
    """Name, type, shape, begin and end of each tensor, as they lie in the file."""
    try:
        said = json.loads(header)
        said.pop("__metadata__", None)
        for name, one in sorted(said.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = map(int, one["data_offsets"])
            shape = [int(length) for length in one["shape"]]
            if min([begin, end - begin, *shape]) < 0:
                raise Malformed(f"{name} has a length below zero")
            yield name, NAMED[one["dtype"]], shape, begin, end
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Malformed(f"its header can't be read: {error!r}"[:200]) from None
