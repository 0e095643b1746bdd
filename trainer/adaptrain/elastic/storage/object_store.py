"""Checkpoints in a bucket of an object store.

There is no rename: a checkpoint's files are written where they stay, in a folder that no other writer has, and its
manifest, the last object to appear, makes it one.
"""

import io
import json
import re
import secrets
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import from_url

from adaptrain.elastic.storage.directory import CLAIMS, MANIFEST, Saved, Storage, Unavailable

if TYPE_CHECKING:
    from obstore import WritableFile
    from obstore.store import ClientConfig, RetryConfig

CONNECTIONS = 4
BLOCK = 1 << 24
"""Bytes of a request. An object has 10,000 parts at most, so this bounds a file at 160 GB."""
CLIENT: "ClientConfig" = {
    "allow_http": True,  # if the endpoint says so
    "connect_timeout": timedelta(seconds=5),
    "timeout": timedelta(seconds=60),
}
RETRY: "RetryConfig" = {
    "max_retries": 5,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5), "base": 2},
}


class ObjectStore(Storage):
    """The objects under a URI. Credentials come from the environment, by the names that each cloud's own tools use.

    Raises:
        Unavailable: there is no account, or no such kind of store.
    """

    renames = False

    def __init__(self, uri: str) -> None:
        self._uri = uri
        with self._explained():
            self._store = from_url(uri, client_options=CLIENT, retry_config=RETRY)

    def __str__(self) -> str:
        return self._uri

    def _saved(self) -> Iterator[Saved]:
        folders: dict[str, dict[str, float]] = {}
        for item in self._list():
            folder, _, file = item["path"].rpartition("/")
            folders.setdefault(folder, {})[file] = item["last_modified"].timestamp()
        for name, files in folders.items():
            found = Saved.of(name, MANIFEST in files, files.get(MANIFEST, max(files.values())))
            if found is not None:
                yield found

    def beside(self, folder: str) -> Storage:
        return ObjectStore(f"{self._uri.rpartition('/')[0]}/{folder}")

    def claims(self) -> list[str]:
        return [item["path"].rpartition("/")[2] for item in self._list(CLAIMS)]

    def claim(self, name: str) -> None:
        with self._explained():
            # Not empty: some stores take such a one for a folder.
            obstore.put(self._store, f"{CLAIMS}/{name}", b"\n")

    def forget_claim(self, name: str) -> None:
        with self._explained():
            obstore.delete(self._store, f"{CLAIMS}/{name}")

    def begin(self, name: str) -> str:
        return f"{name}-{secrets.token_hex(4)}"

    @contextmanager
    def create(self, path: str) -> Iterator[IO[bytes]]:
        with self._explained():
            writer = obstore.open_writer(self._store, path, buffer_size=BLOCK, max_concurrency=CONNECTIONS)
            yield cast(IO[bytes], _Upload(writer))
            writer.close()

    def commit(self, folder: str, name: str, manifest: bytes, check: Callable[[], None]) -> str:
        there = {item["path"]: item["size"] for item in self._list(folder)}
        for file, expected in json.loads(manifest)["files"].items():
            if (found := there.get(f"{folder}/{file}")) != expected["bytes"]:  # a newer group may have swept it away
                raise OSError(f"{folder}/{file} has {found} bytes in the bucket, not {expected['bytes']}")
        check()
        with self._explained():
            obstore.put(self._store, f"{folder}/{MANIFEST}", manifest)
        return folder

    def open(self, path: str, cached: bool = True) -> io.BufferedReader:
        return io.BufferedReader(_Download(self, path))

    @contextmanager
    def replace(self, name: str, check: Callable[[], None]) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch) / name
            check()
            with self._explained():
                made = Path(scratch) / name
                obstore.put(self._store, name, made, chunk_size=BLOCK, max_concurrency=CONNECTIONS)

    def discard(self, name: str) -> None:
        with suppress(FileNotFoundError), self._explained():
            obstore.delete(self._store, name)

    def remove(self, folder: str) -> None:
        paths = [item["path"] for item in self._list(folder)]
        with self._explained():
            for part in ([p for p in paths if p.endswith(MANIFEST)], [p for p in paths if not p.endswith(MANIFEST)]):
                obstore.delete(self._store, part)

    def sweep(self, epoch: int) -> None:
        for left in self._saved():
            if not left.complete and left.epoch < epoch:
                self.remove(left.name)

    def size(self, path: str) -> int:
        """Bytes of an object.

        Raises:
            FileNotFoundError: there is none.
        """
        with self._explained():
            return obstore.head(self._store, path)["size"]

    def block(self, path: str, start: int, end: int) -> memoryview:
        """A part of an object."""
        with self._explained():
            return memoryview(obstore.get_range(self._store, path, start=start, end=end))

    def _list(self, folder: str | None = None) -> list[Any]:
        with self._explained():
            return [item for some in obstore.list(self._store, folder, chunk_size=1000) for item in some]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Tell what went wrong and what to do, and none of what was sent: the answers repeat keys and signatures."""
        try:
            yield
        except (BaseError, OSError) as error:
            if isinstance(error, OSError) and "Error performing" not in str(error):  # it comes from this machine
                raise
            if (told := explain(self._uri, error)) is None:
                raise FileNotFoundError("there is no such object") from None
            raise Unavailable(told) from None


class _Upload:
    """Hands over copies: the writer keeps what it is given until it was sent, and torch uses that memory again."""

    def __init__(self, writer: "WritableFile") -> None:
        self._writer = writer

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for at in range(0, len(view), BLOCK):
            self._writer.write(bytes(view[at : at + BLOCK]))
        return len(view)


class _Download(io.RawIOBase):
    """An object from its beginning to its end. Some blocks are fetched ahead, each by a request of its own."""

    def __init__(self, bucket: ObjectStore, path: str) -> None:
        self._bucket = bucket
        self._path = path
        self._size = bucket.size(path)
        self._asked = 0
        self._ahead: deque[Future[memoryview]] = deque()
        self._pool = ThreadPoolExecutor(CONNECTIONS)
        self._block = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while len(self._ahead) < CONNECTIONS and self._asked < self._size:
            end = min(self._asked + BLOCK, self._size)
            self._ahead.append(self._pool.submit(self._bucket.block, self._path, self._asked, end))
            self._asked = end
        if not self._block and self._ahead:
            self._block = self._ahead.popleft().result()
        count = min(len(buffer), len(self._block))
        buffer[:count] = self._block[:count]
        self._block = self._block[count:]
        return count

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        super().close()


def explain(uri: str, error: Exception) -> str | None:
    """What an object store's refusal means and what to do about it; None: an object isn't there."""
    text, _, details = str(error).partition("\n\nDebug source")
    code = found[1] if (found := re.search(r"<Code>(\w+)</Code>", text)) else ""
    status = found[1] if (found := re.search(r"status code: (\d+ [A-Za-z ]+)", text)) else ""
    host = found[1] if (found := re.search(r"Error performing \w+ \w+://([^/\s]+)", text)) else ""
    if code == "NoSuchBucket" or "bucket does not exist" in text:
        return f'{uri}: there is no bucket "{urlsplit(uri).netloc}": create it, or correct checkpoint.uri'
    if "incorrectly configured region" in text:
        return f"{uri}: the bucket is in another region: set AWS_REGION in checkpoint.secretRef"
    if host.startswith(("169.254.", "metadata.")):  # where a cloud's machines find an identity of their own
        return (
            f"{uri}: there are no credentials: name a Secret that holds them in checkpoint.secretRef, or give the job's"
            " service account an identity that may use the bucket"
        )
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or status[:3] in ("401", "403"):
        return (
            f"{uri}: access is denied ({code or status}): check the keys in checkpoint.secretRef, and that their owner"
            " may list, read, write and delete there"
        )
    if isinstance(error, FileNotFoundError):
        return None
    if "InvalidCertificate" in details:
        return (
            f"{uri}: the certificate of {host} is not trusted: mount your authority's certificate in the workers, and"
            " name its file in workers.env as SSL_CERT_FILE"
        )
    if "HTTP error" in text:
        cause = re.findall(r'(?:message|error): "([^"]+)"', details)
        why = cause[-1] if cause else "no answer in time" if "Timeout" in details or "TimedOut" in details else "broken"
        return f"{uri}: {host} can't be reached ({why}): check the endpoint in checkpoint.secretRef and the network"
    said = found[1] if (found := re.search(r"<Message>([^<]+)</Message>", text)) else text.splitlines()[0]
    return f"{uri}: the store refused: {' '.join(filter(None, (status, code)))} {said[:200]}".rstrip()
