"""Weights in a safetensors file: what training starts from, and what a trial leaves."""

import hashlib
import io
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch

from adaptrain.elastic.storage import tensor_file
from adaptrain.elastic.storage.directory import Storage
from adaptrain.errors import InvalidJob

log = logging.getLogger(__name__)

RETRY_SECONDS, MOST_RETRY_SECONDS = 0.5, 10.0
DIGEST_SUFFIX = ".sha256"
"""Of the file beside a published one that tells its digest, as sha256sum writes and checks it."""
DIGEST_LIMIT = 4096


@dataclass(frozen=True)
class Weights:
    """A file of weights.

    Attributes:
        root: where ``path`` begins.
        path: of the file, as a user gave it.
        sha256: what its digest must be; None: whatever it is.
    """

    root: Path
    path: str
    sha256: str | None

    def read(
        self, model: Mapping[str, torch.Tensor], note: Callable[[str], None] = log.warning
    ) -> dict[str, torch.Tensor]:
        """Its tensors, on the CPU: those that a model's state has, by the same names, of the same shapes and types.
        What can't be read now is waited for.

        Args:
            note: tells people of the wait.

        Raises:
            InvalidJob: there is no such file, it is not what was written, or it is of another model.
        """
        pause = RETRY_SECONDS
        while True:
            try:
                return self._read(model)
            except OSError as error:
                if pause == RETRY_SECONDS:
                    note(f"training waits for initialWeights.path, which can't be read now: {error}")
                time.sleep(pause)
                pause = min(MOST_RETRY_SECONDS, 2 * pause)

    def _read(self, model: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        file = self.root / self.path
        try:
            with file.open("rb") as stream:
                hashed = _Hashed(stream)
                tensors = tensor_file.read(cast(io.BufferedReader, hashed))
        except FileNotFoundError:
            raise InvalidJob(
                f"initialWeights.path: there is no file {self.path!r} in the volume: correct it, or remove"
                " initialWeights to start from random ones"
            ) from None
        except tensor_file.Malformed as error:
            self._check(digest(file))
            raise InvalidJob(f"initialWeights.path: {self.path} is no safetensors file: {error}") from error
        self._check(hashed.hexdigest())
        if self.sha256 is None and (beside := _beside(file)) not in (None, hashed.hexdigest()):
            raise InvalidJob(
                f"initialWeights.path: {self.path} has {hashed.hexdigest()}, and {self.path}{DIGEST_SUFFIX} says"
                f" {beside}: it is not what was published; bring it back, or say with initialWeights.sha256 which you"
                " want"
            )
        self._compare(tensors, model)
        return tensors

    def _check(self, found: str) -> None:
        if self.sha256 not in (None, found):
            raise InvalidJob(
                f"initialWeights.sha256: {self.path} has {found}, not {self.sha256}: it was changed; name another file,"
                " or correct the digest"
            )

    def _compare(self, tensors: Mapping[str, torch.Tensor], model: Mapping[str, torch.Tensor]) -> None:
        for name in [*model, *sorted(set(tensors) - set(model))]:
            there, here = (_in_words(known.get(name)) for known in (tensors, model))
            if there != here:
                raise InvalidJob(
                    f"initialWeights: {name} is {there} in {self.path}, and {here} in this model: name the weights of a"
                    " model of the same name and arguments, for data of the same shape and classes, or remove"
                    " initialWeights"
                )


def save(tensors: Mapping[str, torch.Tensor], file: Path) -> str:
    """Write a file that is on the disk on return. Returns its digest.

    Raises:
        OSError: storage refused.
    """
    with file.open("wb") as stream:
        hashed = _Hashed(stream)
        tensor_file.write(cast(IO[bytes], hashed), tensors, {"format": "pt"})
        stream.flush()
        os.fsync(stream.fileno())
    return hashed.hexdigest()


def publish(
    storage: Storage,
    name: str,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    check: Callable[[], None],
) -> None:
    """Write a file of weights, and its digest beside it. Whoever reads meanwhile finds no digest of another file.

    Args:
        check: is called at the last moment, and may raise.

    Raises:
        OSError: storage refused.
    """

    def make_room() -> None:
        check()
        storage.discard(name + DIGEST_SUFFIX)

    with storage.replace(name, make_room) as path, path.open("wb") as stream:
        hashed = _Hashed(stream)
        tensor_file.write(cast(IO[bytes], hashed), tensors, metadata)
    with storage.replace(name + DIGEST_SUFFIX, check) as path:
        path.write_text(f"{hashed.hexdigest()}  {name}\n")


def digest(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        OSError: it can't be read.
    """
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _beside(file: Path) -> str | None:
    """What the file beside one says its digest is; None: there is none."""
    try:
        with file.with_name(file.name + DIGEST_SUFFIX).open("rb") as stream:
            return stream.read(DIGEST_LIMIT).decode(errors="replace").partition(" ")[0].strip()
    except FileNotFoundError:
        return None


class _Hashed:
    """A stream that is read or written once, and the SHA-256 of all that went through it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()

    def write(self, data: Any) -> int:
        self._hash.update(data)
        return int(self._stream.write(data))

    def read(self, count: int) -> bytes:
        data: bytes = self._stream.read(count)
        self._hash.update(data)
        return data

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _in_words(tensor: torch.Tensor | None) -> str:
    return "absent" if tensor is None else f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
