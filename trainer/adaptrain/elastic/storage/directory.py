"""Where a job's checkpoints are kept: a directory or a bucket's prefix, behind one interface.

Each checkpoint is a folder of files, ``step-<step>.<epoch>``, perhaps with ``-<something unique>`` behind it, whose
manifest is the last file to appear in it. What storage refuses is an error, whichever call it refuses: only an answer
that there is no such file counts as one.
"""

import errno
import io
import os
import re
import shutil
import stat
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, ClassVar, Self

MANIFEST = "manifest.json"
FOLDER = re.compile(r"step-(\d+)\.(\d+)(-[0-9a-f]+)?")
CLAIMS = "lineages"


class Unavailable(OSError):
    """Storage as a whole doesn't answer or refuses; the message says what to do. Nothing is known of what it holds."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint's folder."""

    name: str
    step: int
    epoch: int
    complete: bool
    """Whether it has a manifest."""
    time: float
    """Unix time, seconds."""

    @classmethod
    def of(cls, name: str, complete: bool, time: float) -> Self | None:
        """None: the name is no checkpoint's."""
        found = FOLDER.fullmatch(name)
        return None if found is None else cls(name, int(found[1]), int(found[2]), complete, time)


class Storage(ABC):
    """Paths are relative, with ``/``. Every method raises OSError if storage refuses."""

    renames: ClassVar[bool]
    """Whether a folder gets its name when it is whole: one without a manifest has lost it then, else it is of a writer
    that has not finished, or was lost."""

    def saved(self) -> list[Saved]:
        """All checkpoints: the newest lineage first, in it the newest step first."""
        return sorted(self._saved(), key=lambda s: (s.epoch >> 32, s.step, s.epoch, s.complete), reverse=True)

    @abstractmethod
    def _saved(self) -> Iterator[Saved]: ...

    @abstractmethod
    def beside(self, folder: str) -> "Storage":
        """Where another job's checkpoints are."""

    @abstractmethod
    def claims(self) -> list[str]:
        """Names of all claims."""

    @abstractmethod
    def claim(self, name: str) -> None:
        """Add a claim, to those that are there."""

    @abstractmethod
    def forget_claim(self, name: str) -> None:
        """Remove a claim that has no effect any more."""

    @abstractmethod
    def begin(self, name: str) -> str:
        """A new folder for the files of a checkpoint, which nobody takes for one yet."""

    @abstractmethod
    def create(self, path: str) -> AbstractContextManager[IO[bytes]]:
        """A file to write from beginning to end; it is durable when the context ends."""

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
    def discard(self, name: str) -> None:
        """Remove a file, if it is there."""

    @abstractmethod
    def remove(self, folder: str) -> None:
        """Remove a checkpoint, or what there is of it: whoever reads meanwhile finds no manifest first."""

    @abstractmethod
    def sweep(self, epoch: int) -> None:
        """Remove what workers left that were killed while saving, before that epoch."""


class Directory(Storage):
    """A directory of a file system. A checkpoint is written aside and renamed into place when it is whole. What is
    written aside has a name that no other process uses, on this machine or another.

    Args:
        make: whether it is made if it is not there.
    """

    renames = True

    def __init__(self, path: Path, make: bool = True) -> None:
        self._path = path
        self._make = make
        self._own: set[str] = set()
        """Files that are being written to replace others."""

    def __str__(self) -> str:
        return str(self._path)

    def _saved(self) -> Iterator[Saved]:
        for name in self._names(self._path):
            if FOLDER.fullmatch(name):
                with suppress(FileNotFoundError):  # another process removed it meanwhile
                    found = Saved.of(name, self._is_file(name, MANIFEST), os.stat(self._path / name).st_mtime)
                    if found is not None:
                        yield found

    def beside(self, folder: str) -> Storage:
        return Directory(self._path.parent / folder, make=False)

    def claims(self) -> list[str]:
        return self._names(self._path / CLAIMS)

    def claim(self, name: str) -> None:
        self._made(self._path / CLAIMS)
        with suppress(FileExistsError), self.create(f"{CLAIMS}/{name}"):
            pass
        _sync(self._path / CLAIMS)

    def forget_claim(self, name: str) -> None:
        os.unlink(self._path / CLAIMS / name)

    def begin(self, name: str) -> str:
        found = FOLDER.fullmatch(name)
        assert found is not None
        self._made(self._path)
        partial = f".partial-{found[2]}-{int(found[1])}-{uuid.uuid4().hex}"
        os.mkdir(self._path / partial)
        return partial

    @contextmanager
    def create(self, path: str) -> Iterator[IO[bytes]]:
        handle = os.open(self._path / path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())

    def commit(self, folder: str, name: str, manifest: bytes, check: Callable[[], None]) -> str:
        with self.create(f"{folder}/{MANIFEST}") as stream:
            stream.write(manifest)
        _sync(self._path / folder)
        check()
        os.rename(self._path / folder, self._path / name)
        _sync(self._path)
        return name

    def open(self, path: str, cached: bool = True) -> io.BufferedReader:
        # Whoever could put a pipe there would keep its reader waiting for ever.
        handle = os.open(self._path / path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise FileNotFoundError(f"{path} is no regular file")
            if not cached:
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        except BaseException:
            os.close(handle)
            raise
        return os.fdopen(handle, "rb")

    @contextmanager
    def replace(self, name: str, check: Callable[[], None]) -> Iterator[Path]:
        self._made(self._path)
        partial = self._path / f".replaces-{name}-{uuid.uuid4().hex}"
        self._own.add(partial.name)
        try:
            yield partial
            _sync(partial)
            check()
            os.rename(partial, self._path / name)
        except BaseException:
            with suppress(OSError):  # it is swept away later
                os.unlink(partial)
            raise
        finally:
            self._own.discard(partial.name)
        _sync(self._path)

    def discard(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._path / name)

    def remove(self, folder: str) -> None:
        doomed = folder
        if FOLDER.fullmatch(folder):
            doomed = f".removed-{uuid.uuid4().hex}"
            try:
                os.rename(self._path / folder, self._path / doomed)
            except FileNotFoundError:
                return
        self._clear(doomed)

    def sweep(self, epoch: int) -> None:
        for name in self._names(self._path):
            kind, _, rest = name.partition("-")
            # An epoch's members save one after the other.
            stale = kind == ".partial" and int(rest.split("-")[0]) < epoch
            if stale or kind == ".removed":
                self._clear(name)
            elif kind == ".replaces" and name not in self._own:
                self.discard(name)

    def _clear(self, folder: str) -> None:
        with suppress(FileNotFoundError):  # another process is faster
            shutil.rmtree(self._path / folder)

    def _names(self, folder: Path) -> list[str]:
        try:
            return os.listdir(folder)
        except FileNotFoundError:
            if not self._make:
                raise
            self._made(folder)
            return os.listdir(folder)

    def _made(self, folder: Path) -> None:
        os.makedirs(folder, exist_ok=True)

    def _is_file(self, folder: str, name: str) -> bool:
        try:
            return stat.S_ISREG(os.stat(self._path / folder / name).st_mode)
        except FileNotFoundError:
            return False


def _sync(path: Path) -> None:
    """Bring a file or folder to the disk; some network file systems can't do it for a folder."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS) or not stat.S_ISDIR(os.fstat(handle).st_mode):
            raise
    finally:
        os.close(handle)
