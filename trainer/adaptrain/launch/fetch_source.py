"""A script's files from a git repository, over HTTP: what a worker pod's init container fetches.

The git protocol is dulwich's, so that the image holds no git. Only the commit itself is fetched where the server allows
that (``depth`` 1); submodules and files of git-lfs are not.
"""

import logging
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit, urlunsplit

import urllib3
from adaptrain_api.contracts.coordinator_api import EXIT_INVALID
from dulwich import porcelain
from dulwich.client import HTTPUnauthorized, default_urllib3_manager, get_transport_and_path
from dulwich.errors import GitProtocolError, NotGitRepository
from dulwich.objects import Commit, ObjectID, Tag
from dulwich.refs import HEADREF, Ref
from dulwich.repo import Repo

from adaptrain.errors import InvalidJob
from adaptrain.process.environment import required
from adaptrain.process.result import WORDS_LIMIT, ending

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 60.0
"""A server that can't be reached is asked again for so long."""
RETRY_SECONDS = 3.0
READ_SECONDS = 60.0
"""A server that says nothing for so long is not waited for any longer."""
WHOLE_SECONDS = 1800.0
"""Longest fetch, however slowly the server gives it."""
COMMIT = re.compile(r"[0-9a-f]{40}")


class _Over(BaseException):
    """No OSError, which a library would take for the server's and try again."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise a TimeoutError after so long, whatever is waited for: a name, a connection, a byte. In the main thread."""

    def over(*_: object) -> None:
        raise _Over

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _Over:
        raise TimeoutError(f"the script's source was not fetched within {seconds:.0f} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fetch(url: str, ref: str, into: Path, username: str | None = None, password: str | None = None) -> str:
    """Put the files of a commit into a folder, in place of what a fetch that was interrupted left there.

    Args:
        ref: a branch, a tag, or a commit in full.

    Returns:
        The commit.

    Raises:
        InvalidJob: there is no such repository or ref, or we may not read it.
        OSError: the server can't be reached.
    """
    until = time.monotonic() + PATIENCE_SECONDS
    into.mkdir(parents=True, exist_ok=True)
    for left in into.iterdir():
        shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
    repository = Repo.init(str(into))
    while True:
        try:
            return _fetch(repository, url, ref, username, password)
        except HTTPUnauthorized:
            given = "those of secretRef (username, password) are refused" if password else "give git.secretRef"
            raise InvalidJob(f"script.source.git.url: {_shown(url)} asks for credentials: {given}") from None
        except NotGitRepository:
            raise InvalidJob(f"script.source.git.url: there is no git repository at {_shown(url)}") from None
        except (urllib3.exceptions.HTTPError, GitProtocolError, OSError) as error:
            if time.monotonic() > until:
                raise OSError(f"script.source.git.url: {_shown(url)} can't be read: {error}") from error
            log.warning("%s can't be read, and is asked again: %s", _shown(url), error)
            time.sleep(RETRY_SECONDS)


def _fetch(repository: Repo, url: str, ref: str, username: str | None, password: str | None) -> str:
    if password is not None and not username:
        username = "git"  # any will do for a token, but there must be one
    pool = cast(urllib3.PoolManager, default_urllib3_manager(None, base_url=url, timeout=READ_SECONDS))
    client, path = get_transport_and_path(url, username=username, password=password, pool_manager=pool)
    wanted = ObjectID(b"")

    def one(refs: Mapping[Ref, ObjectID], depth: int | None = None) -> list[ObjectID]:
        nonlocal wanted
        wanted = ObjectID(ref.encode()) if COMMIT.fullmatch(ref) else _resolve(refs, ref, url)
        return [wanted]

    def every(refs: Mapping[Ref, ObjectID], depth: int | None = None) -> list[ObjectID]:
        return sorted({commit for name, commit in refs.items() if name.startswith((b"refs/heads/", b"refs/tags/"))})

    try:
        client.fetch(path.encode(), repository, determine_wants=one, depth=1)
    except GitProtocolError:
        if not COMMIT.fullmatch(ref):
            raise
        # Not every server gives a commit that is no branch's newest by itself.
        client.fetch(path.encode(), repository, determine_wants=every)
    try:
        found = repository[wanted]
        while isinstance(found, Tag):
            found = repository[found.object[1]]
    except KeyError:
        raise InvalidJob(f"script.source.git.ref: {_shown(url)} has no commit {ref} in any branch") from None
    if not isinstance(found, Commit):
        raise InvalidJob(f"script.source.git.ref: {ref!r} is no commit in {_shown(url)}")
    repository.refs[HEADREF] = found.id
    porcelain.reset(repository, "hard", found.id)
    return found.id.decode()


def _resolve(refs: Mapping[Ref, ObjectID], ref: str, url: str) -> ObjectID:
    for name in (f"refs/heads/{ref}", f"refs/tags/{ref}", ref):
        if (found := refs.get(Ref(name.encode()))) is not None:
            return found
    branches = sorted(r.removeprefix(b"refs/heads/").decode() for r in refs if r.startswith(b"refs/heads/"))
    raise InvalidJob(
        f"script.source.git.ref: {_shown(url)} has no branch or tag {ref!r}, only branches such as"
        f" {', '.join(branches[:10])}; a commit must be given in full"
    )


def _shown(url: str) -> str:
    """Without credentials, which may be written into it."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def main() -> None:
    """Fetch a script's files into a pod; its termination message is the commit, or why there is none."""

    ended = Path(required("ADAPTRAIN_TERMINATION_LOG"))
    try:
        with within(WHOLE_SECONDS):
            commit = fetch(
                required("ADAPTRAIN_GIT_URL"),
                required("ADAPTRAIN_GIT_REF"),
                Path(required("ADAPTRAIN_SOURCE_DIR")),
                os.environ.get("ADAPTRAIN_GIT_USERNAME"),
                os.environ.get("ADAPTRAIN_GIT_PASSWORD"),
            )
    except (InvalidJob, OSError) as error:
        ended.write_text(ending(str(error), WORDS_LIMIT))
        logging.error("%s", error)
        sys.exit(EXIT_INVALID if isinstance(error, InvalidJob) else 1)
    ended.write_text(commit)
