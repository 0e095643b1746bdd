"""Where a job's checkpoints are kept: a directory or a bucket's prefix, behind one interface.

Each checkpoint is a folder of files, ``step-<step>.<epoch>``, perhaps with ``-<something unique>`` behind it, whose
manifest is the last file to appear in it.
"""

import contextlib
import io
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

MANIFEST = "manifest.json"
FOLDER = re.compile(r"step-(\d+)\.(\d+)(-[0-9a-f]+)?")


class Unavailable(OSError):
    """Storage as a whole doesn't answer or refuses; the message says what to do. Nothing is known of what it holds."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint's folder."""

    name: str
    step: int
    epoch: int
    complete: bool
    """Whether it has a manifest. Without one its writer was lost, or somebody removed it."""
    time: float
    """Unix time, seconds."""

    @classmethod
    def of(cls, name: str, complete: bool, time: float) -> Self | None:
        """None: the name is no checkpoint's."""
        found = FOLDER.fullmatch(name)
        return None if found is None else cls(name, int(found[1]), int(found[2]), complete, time)


class Storage(ABC):
    """Paths are relative, with ``/``. Every method raises OSError if storage refuses."""

    def saved(self) -> list[Saved]:
        """All checkpoints: the newest lineage first, in it the newest step first."""
        return sorted(self._saved(), key=lambda s: (s.epoch >> 32, s.step, s.epoch, s.complete), reverse=True)

    @abstractmethod
    def _saved(self) -> Iterator[Saved]: ...

    @abstractmethod
    def begin(self, name: str) -> str:
        """A new folder for the files of a checkpoint, which nobody takes for one yet."""

    @abstractmethod
    def create(self, path: str) -> AbstractContextManager[IO[bytes]]:
        """A file to write from beginning to end; it is durable when the context ends."""

    @abstractmethod
    def rename(self, path: str, to: str) -> None:
        """Rename a small file."""

    @abstractmethod
    def commit(self, folder: str, name: str, manifest: bytes, check: Callable[[], None]) -> str:
        """Make a whole folder the checkpoint ``name``, and return its folder's name then.

        Args:
            check: is called at the last moment, and may raise.
        """

    @abstractmethod
    def open(self, path: str, cached: bool = True) -> io.BufferedReader:
        """A file to read from its beginning to its end.

        Args:
            cached: whether what the kernel remembers of it will do.

        Raises:
            FileNotFoundError: there is no such file.
        """

    @abstractmethod
    def replace(self, name: str, check: Callable[[], None]) -> AbstractContextManager[Path]:
        """A path of this machine: what is written there becomes the file ``name`` when the context ends, at once."""

    @abstractmethod
    def remove(self, folder: str) -> None:
        """Remove a checkpoint, or what there is of it."""

    @abstractmethod
    def sweep(self, epoch: int) -> None:
        """Remove what workers left that were killed while saving, before that epoch."""


class Directory(Storage):
    """A directory of a file system. A checkpoint is written aside and renamed into place when it is whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.mkdir(parents=True, exist_ok=True)

    def __str__(self) -> str:
        return str(self._path)

    def _saved(self) -> Iterator[Saved]:
        for path in self._path.iterdir():
            if FOLDER.fullmatch(path.name):
                with contextlib.suppress(FileNotFoundError):  # somebody else removed it meanwhile
                    found = Saved.of(path.name, (path / MANIFEST).exists(), path.stat().st_mtime)
                    if found is not None:
                        yield found

    def begin(self, name: str) -> str:
        found = FOLDER.fullmatch(name)
        assert found is not None
        partial = f".partial-{found[2]}-{int(found[1])}-{os.getpid()}"
        shutil.rmtree(self._path / partial, ignore_errors=True)
        (self._path / partial).mkdir()
        return partial

    @contextmanager
    def create(self, path: str) -> Iterator[IO[bytes]]:
        with (self._path / path).open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())

    def rename(self, path: str, to: str) -> None:
        (self._path / path).rename(self._path / to)

    def commit(self, folder: str, name: str, manifest: bytes, check: Callable[[], None]) -> str:
        with self.create(f"{folder}/{MANIFEST}") as stream:
            stream.write(manifest)
        _sync(self._path / folder)
        check()
        self.rename(folder, name)
        _sync(self._path)
        return name

    def open(self, path: str, cached: bool = True) -> io.BufferedReader:
        file = (self._path / path).open("rb")
        if not cached:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return file

    @contextmanager
    def replace(self, name: str, check: Callable[[], None]) -> Iterator[Path]:
        partial = self._path / f".{name}.{os.getpid()}"
        try:
            yield partial
            _sync(partial)
            check()
            partial.rename(self._path / name)
        finally:
            partial.unlink(missing_ok=True)
        _sync(self._path)

    def remove(self, folder: str) -> None:
        shutil.rmtree(self._path / folder, ignore_errors=True)

    def sweep(self, epoch: int) -> None:
        for stale in self._path.glob(".partial-*"):
            # An epoch's members save one after the other.
            if int(stale.name.split("-")[1]) < epoch:
                shutil.rmtree(stale, ignore_errors=True)


def _sync(path: Path) -> None:
    """Bring a file or folder to the disk; some network file systems can't do it for a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(handle)
