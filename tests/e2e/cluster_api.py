"""A small client of the API server, with no cache: what it says now is what a test is about."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.1

Object = dict[str, Any]


class Api:
    """The API server, asked without the start of a program for each question."""

    def __init__(self, kubeconfig: Path) -> None:
        from kubernetes import client, config

        settings = client.Configuration()
        config.load_kube_config(str(kubeconfig), client_configuration=settings)
        self._host = settings.host
        self._pool = client.ApiClient(settings).rest_client.pool_manager

    def __call__(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> tuple[int, Object]:
        headers = {"Accept": "application/json", "Content-Type": kind}
        data = None if body is None else json.dumps(body).encode()
        answer = self._pool.request(method, self._host + path, body=data, headers=headers, timeout=20)
        return answer.status, json.loads(answer.data)

    def get(self, path: str) -> Object:
        status, body = self("GET", path)
        assert status == 200, f"{path}: {body.get('message')}"
        return body


def until(what: str, look: Callable[[], Any], seconds: float = 60, told: Callable[[], str] | None = None) -> Any:
    """The first true answer."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds:.0f} s\n{told() if told else ''}")
        time.sleep(POLL_SECONDS)
    return found
