"""A real git repository behind a real HTTP server."""

import base64
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from wsgiref.simple_server import make_server

from dulwich import porcelain
from dulwich.repo import Repo
from dulwich.server import DictBackend
from dulwich.web import WSGIRequestHandlerLogger, WSGIServerLogger, make_wsgi_chain

AUTHOR = b"Author <author@example.com>"


class Repository:
    """Its branch is ``main``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repo = Repo.init(str(folder), mkdir=not folder.exists(), default_branch=b"main")

    def commit(self, **files: str) -> str:
        """Commit files, by names without their ``.py``. Returns the commit."""
        for name, text in files.items():
            (self.folder / f"{name}.py").write_text(text)
            porcelain.add(self.repo, paths=[str(self.folder / f"{name}.py")])
        return porcelain.commit(self.repo, message=b"a change", author=AUTHOR, committer=AUTHOR).decode()

    def tag(self, name: str) -> None:
        """Tag the newest commit, with a message."""
        porcelain.tag_create(self.repo, name.encode(), annotated=True, message=b"a tag", author=AUTHOR)


@contextmanager
def served(repository: Repository, host: str = "127.0.0.1", login: tuple[str, str] | None = None) -> Iterator[str]:
    """Serve it at the URL that this yields; with a login, to nobody else."""
    chain = make_wsgi_chain(DictBackend({"/repository.git": repository.repo}))
    app = chain if login is None else _guarded(chain, login)
    with make_server(host, 0, app, handler_class=WSGIRequestHandlerLogger, server_class=WSGIServerLogger) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://{host}:{server.server_port}/repository.git"
        server.shutdown()
        thread.join()


def _guarded(app: Callable[..., Any], login: tuple[str, str]) -> Callable[..., Any]:
    wanted = "Basic " + base64.b64encode(":".join(login).encode()).decode()

    def guard(environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        if environ.get("HTTP_AUTHORIZATION") != wanted:
            start("401 Unauthorized", [("WWW-Authenticate", 'Basic realm="git"')])
            return [b""]
        return app(environ, start)

    return guard
