"""A small client of the API server, by REST with the administrator's certificate."""

from __future__ import annotations

import http.client
import json
import ssl
from typing import Any

from localcluster.config import API_PORT, HOST_IP, Paths
from localcluster.errors import ClusterError

Object = dict[str, Any]

MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
_APPLY = "application/apply-patch+yaml"


class KubeError(ClusterError):
    """The API server refused, or could not be reached (``code`` 0)."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Kube:
    """Every call has a time limit. The connection is kept between calls: one client per thread."""

    def __init__(self, paths: Paths, *, identity: str = "admin", timeout: float = 10) -> None:
        tls = ssl.create_default_context(cafile=str(paths.pki / "ca.crt"))
        tls.load_cert_chain(paths.pki / f"{identity}.crt", paths.pki / f"{identity}.key")
        self._connection = http.client.HTTPSConnection(HOST_IP, API_PORT, context=tls, timeout=timeout)

    def call(self, method: str, path: str, body: Any = None, *, kind: str = "application/json") -> str:
        try:
            try:
                status, text = self._send(method, path, body, kind)
            except (ConnectionError, http.client.HTTPException):
                # The server has closed the kept connection, by a restart for one: once more, on a new one.
                self._connection.close()
                status, text = self._send(method, path, body, kind)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise KubeError(0, f"the API server does not answer: {error}") from error
        if status >= 300:
            try:
                message = json.loads(text)["message"]
            except (ValueError, KeyError, TypeError):
                message = text
            raise KubeError(status, f"{method} {path}: {message}")
        return text

    def _send(self, method: str, path: str, body: Any, kind: str) -> tuple[int, str]:
        self._connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": kind})
        response = self._connection.getresponse()
        return response.status, response.read().decode()

    def get(self, path: str) -> Object:
        return json.loads(self.call("GET", path))  # type: ignore[no-any-return]

    def items(self, path: str) -> list[Object]:
        return self.get(path)["items"]  # type: ignore[no-any-return]

    def create(self, path: str, body: Object) -> None:
        """Creates the object, unless it is there already."""
        try:
            self.call("POST", path, body)
        except KubeError as error:
            if error.code != 409:
                raise

    def apply(self, path: str, body: Object) -> None:
        """Makes the object in the collection ``path`` be as described."""
        to = f"{path}/{body['metadata']['name']}?fieldManager=localcluster&force=true"
        self.call("PATCH", to, body, kind=_APPLY)

    def patch(self, path: str, body: Any, *, kind: str = MERGE) -> None:
        self.call("PATCH", path, body, kind=kind)

    def delete(self, path: str) -> None:
        try:
            self.call("DELETE", path)
        except KubeError as error:
            if error.code != 404:
                raise

    def ready(self) -> bool:
        try:
            self.call("GET", "/readyz")
        except KubeError:
            return False
        return True
