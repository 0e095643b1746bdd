"""A small HTTP server for metrics, health and progress, on a thread of its own."""

import hmac
import json
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app


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
) -> int:
    """Serve ``/metrics`` and ``/healthz`` to anyone and ``/progress`` to who knows the token.

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
        if path == "/progress" and progress is not None:
            said = environ.get("HTTP_AUTHORIZATION", "")
            if not hmac.compare_digest(said.encode(), f"Bearer {token}".encode()):
                start_response("401 Unauthorized", [("Content-Type", "text/plain"), ("WWW-Authenticate", "Bearer")])
                return [b"the job's token is needed: see the Secret named after the job\n"]
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(progress()).encode()]
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"there are /metrics, /healthz and, on a coordinator, /progress\n"]

    server = make_server(host, port, application, server_class=_Server, handler_class=_Quiet)
    threading.Thread(target=server.serve_forever, daemon=True, name="http").start()
    return int(server.server_port)
