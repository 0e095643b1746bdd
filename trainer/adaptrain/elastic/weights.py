"""Weights in a safetensors file: what training starts from, and what a trial leaves."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize

from adaptrain.errors import InvalidJob


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

    def read(self, model: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Its tensors, on the CPU: those that a model's state has, by the same names, of the same shapes and types.

        Raises:
            InvalidJob: there is no such file, it is not what was written, or it is of another model.
            OSError: it can't be read now.
        """
        file = self.root / self.path
        try:
            found = digest(file)
        except FileNotFoundError:
            raise InvalidJob(
                f"initialWeights.path: there is no file {self.path!r} in the volume: correct it, or remove"
                " initialWeights to start from random ones"
            ) from None
        if self.sha256 not in (None, found):
            raise InvalidJob(
                f"initialWeights.sha256: {self.path} has {found}, not {self.sha256}: it was changed; name another file,"
                " or correct the digest"
            )
        try:
            tensors: dict[str, torch.Tensor] = load_file(file)
        except SafetensorError as error:
            raise InvalidJob(f"initialWeights.path: {self.path} is no safetensors file: {error}") from error
        self._compare(tensors, model)
        return tensors

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
    whole = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    data = serialize(whole, {"format": "pt"})
    with file.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    return hashlib.sha256(data).hexdigest()


def digest(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        OSError: it can't be read.
    """
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _in_words(tensor: torch.Tensor | None) -> str:
    return "absent" if tensor is None else f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
