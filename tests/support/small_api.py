"""An API server that keeps objects in a dict, to try the operator's requests on: real HTTP, no cluster."""

import itertools
from base64 import b64encode
from collections.abc import Callable
from typing import Any

from adaptrain_operator.kube.client import Client
from aiohttp import web
from kubernetes.aio.client import Configuration

Object = dict[str, Any]
Admission = Callable[[str, Object], str | None]
"""From a plural and an object that shall be made to the words of its refusal."""


class SmallApi:
    """Objects by their path; every change is kept in ``changes`` as verb and path."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.changes: list[str] = []
        self.admit: Admission = lambda plural, body: None
        self.mutate: Callable[[str, Object], Object] = lambda plural, body: body
        self._versions = itertools.count(100)
        self._runner: web.AppRunner | None = None

    async def client(self) -> Client:
        """Serve, and a client of it."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        address = self._runner.addresses[0]
        configuration = Configuration()
        configuration.host = f"http://{address[0]}:{address[1]}"
        return Client(configuration, "adaptrain-operator")

    async def close(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    def put(self, path: str, body: Object) -> Object:
        """Keep an object, as if somebody had made it."""
        meta = {
            "uid": f"uid-{body['metadata']['name']}",
            **body["metadata"],
            "resourceVersion": str(next(self._versions)),
        }
        self.objects[path] = {**body, "metadata": meta}
        return self.objects[path]

    def made(self, plural: str) -> list[Object]:
        return [one for path, one in self.objects.items() if path.split("/")[-2] == plural]

    async def _answer(self, request: web.Request) -> web.Response:
        path, method = request.path, request.method
        if method == "GET" and path in self.objects:
            return web.json_response(self.objects[path])
        if method == "GET":
            items = [one for key, one in self.objects.items() if key.rpartition("/")[0] == path]
            if path.rpartition("/")[2].endswith("s"):
                return web.json_response({"metadata": {"resourceVersion": "1"}, "items": items})
            return _status(404, "NotFound", f"{path} not found")
        self.changes.append(f"{method} {path}")
        if method == "DELETE":
            return web.json_response(self.objects.pop(path, {"kind": "Status", "metadata": {}}))
        body = await request.json()
        if path.endswith("/status"):
            known = self.objects[path.removesuffix("/status")]
            known["status"] = {**known["status"], **body["status"]}
            return web.json_response(self.put(path.removesuffix("/status"), known))
        plural = path.split("/")[-1 if method == "POST" else -2]
        key = f"{path}/{body['metadata']['name']}" if method == "POST" else path
        if (words := self.admit(plural, body)) is not None:
            return _status(403, "Forbidden", words)
        if method == "POST" and key in self.objects:
            return _status(409, "AlreadyExists", f"{key} already exists")
        body = self.mutate(plural, body)
        if texts := body.pop("stringData", None):
            body["data"] = {name: b64encode(text.encode()).decode() for name, text in texts.items()}
        return web.json_response(self.put(key, body), status=201)


def _status(code: int, reason: str, message: str) -> web.Response:
    return web.json_response({"kind": "Status", "reason": reason, "message": message, "code": code}, status=code)
