"""A small HTTP server for metrics, health and progress, on a thread of its own."""

import hmac
import json
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

LARGEST = 16 * 1024 * 1024
"""Bytes of what is told."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 32


class _Quiet(WSGIRequestHandler):
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:
        pass


def serve(
    host: str,
    port: int,
    registry: CollectorRegistry,
    progress: Callable[[], dict[str, Any]] | None = None,
    token: str = "",
    told: Callable[[bytes], None] | None = None,
) -> int:
    """Serve ``/metrics`` and ``/healthz`` to anyone, and ``/progress`` to who knows the token; so who posts to
    ``/trials``, which ``told`` takes or raises ValueError, and is answered with the progress.

    Returns the port (``port`` 0: any free one).
    """
    metrics = make_wsgi_app(registry)

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if path == "/metrics":
            return cast(Iterable[bytes], metrics(environ, start_response))
        if path == "/healthz":
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"ok\n"]
        posted = path == "/trials" and told is not None and environ.get("REQUEST_METHOD") == "POST"
        if (path == "/progress" or posted) and progress is not None:
            said = environ.get("HTTP_AUTHORIZATION", "")
            if not hmac.compare_digest(said.encode(), f"Bearer {token}".encode()):
                start_response("401 Unauthorized", [("Content-Type", "text/plain"), ("WWW-Authenticate", "Bearer")])
                return [b"the job's token is needed: see the Secret named after the job\n"]
            if posted and told is not None:
                length = int(environ.get("CONTENT_LENGTH") or 0)
                if length > LARGEST:
                    start_response("413 Content Too Large", [("Content-Type", "text/plain")])
                    return [f"at most {LARGEST} bytes are taken\n".encode()]
                try:
                    told(environ["wsgi.input"].read(length))
                except ValueError as error:
                    start_response("400 Bad Request", [("Content-Type", "text/plain")])
                    return [f"{error}\n".encode()]
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(progress()).encode()]
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"there are /metrics, /healthz and, on a coordinator, /progress\n"]

    server = make_server(host, port, application, server_class=_Server, handler_class=_Quiet)
    threading.Thread(target=server.serve_forever, daemon=True, name="http").start()
    return int(server.server_port)
