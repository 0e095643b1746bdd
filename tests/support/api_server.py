"""An API server in memory, spoken to over a real socket, so that the operator's own client and reconcilers are tried
against it: names, uids, resource versions, preconditions, defaults and label selectors are as in Kubernetes.

There is no scheduler, no kubelet and no garbage collector: tests play them with ``ApiServer.objects``.
"""

import base64
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from copy import deepcopy
from typing import Any

from adaptrain_api.contracts.coordinator_api import Progress
from adaptrain_operator import clock
from adaptrain_operator.controllers.base import Runtime
from adaptrain_operator.controllers.job import Reconciler
from adaptrain_operator.controllers.search import SearchReconciler
from adaptrain_operator.core import naming
from adaptrain_operator.core.observed import Contact
from adaptrain_operator.kube.client import Client
from adaptrain_operator.kube.kinds import JOB, SEARCH, Kind
from adaptrain_operator.runtime.cache import Cache
from adaptrain_operator.runtime.coordinator_poller import CoordinatorPoller
from adaptrain_operator.runtime.events import Events
from adaptrain_operator.runtime.node_leases import NodeLeases
from adaptrain_operator.runtime.workqueue import Queue
from aiohttp import web
from kubernetes.aio.client.configuration import Configuration

Object = dict[str, Any]
NAMESPACE = "ns"
SERVED = ("status",)
"""Subresources."""


class _Error(Exception):
    def __init__(self, code: int, reason: str, message: str = "") -> None:
        super().__init__(message)
        self.code, self.reason = code, reason


class ApiServer:
    """Objects by plural, namespace and name."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.requests: list[tuple[str, str, int]] = []
        """Method, path and code of each answer."""
        self.refuse: Callable[[str, Object], str | None] = lambda method, obj: None
        """Admission: why an object is not taken (403), given the method; None: it is."""
        self._version = 100

    def put(self, kind: Kind, obj: Object) -> Object:
        """Let there be an object, made by somebody else; with a uid and a version."""
        obj = deepcopy(obj)
        obj["metadata"].setdefault("namespace", NAMESPACE)
        return self._create(kind.plural, obj["metadata"]["namespace"], obj)

    def get(self, kind: Kind, name: str, namespace: str = NAMESPACE) -> Object | None:
        return self.objects.get((kind.plural, namespace, name))

    def change(self, kind: Kind, name: str, **fields: Any) -> Object:
        """Replace top-level fields of an object, as a person or another controller would."""
        obj = self.objects[kind.plural, NAMESPACE, name]
        obj |= deepcopy(fields)
        self._touch(obj)
        return obj

    def remove(self, kind: Kind, name: str) -> None:
        del self.objects[kind.plural, NAMESPACE, name]

    def all(self, kind: Kind) -> dict[str, Object]:
        return {name: obj for (plural, _, name), obj in self.objects.items() if plural == kind.plural}

    def writes(self) -> list[tuple[str, str]]:
        """Method and path of what has changed anything."""
        return [(method, path) for method, path, code in self.requests if method != "GET" and code < 300]

    async def handle(self, request: web.Request) -> web.Response:
        text = await request.read()
        try:
            code, answer = 200, self._answer(request, json.loads(text) if text else {})
        except _Error as problem:
            code = problem.code
            answer = {"kind": "Status", "reason": problem.reason, "message": str(problem), "code": code}
        self.requests.append((request.method, request.path, code))
        return web.json_response(answer, status=code)

    def _answer(self, request: web.Request, body: Object) -> Object:
        parts = request.path.strip("/").split("/")[2 if request.path.startswith("/api/") else 3 :]
        namespace = ""
        if parts[0] == "namespaces" and len(parts) > 2:
            namespace, parts = parts[1], parts[2:]
        plural, name, sub = [*parts, "", ""][:3]
        if sub and sub not in SERVED:
            raise _Error(404, "NotFound", request.path)
        if not name:
            if request.method == "GET":
                return self._list(plural, namespace, request.query.get("labelSelector", ""))
            return self._create(plural, namespace, body)
        found = self.objects.get((plural, namespace, name))
        if found is None:
            raise _Error(404, "NotFound", f'{plural} "{name}" not found')
        match request.method:
            case "GET":
                return found
            case "PUT":
                return self._change(found, body, sub)
            case "PATCH":
                if "apply" in request.content_type:
                    raise _Error(415, "UnsupportedMediaType", "server-side apply is not served here")
                return self._change(found, _merge(found, body), sub)
            case "DELETE":
                return self._delete((plural, namespace, name), found, body)
        raise _Error(405, "MethodNotAllowed", request.method)

    def _list(self, plural: str, namespace: str, selector: str) -> Object:
        wanted = dict(one.split("=", 1) for one in selector.split(",") if one)
        items = [
            obj
            for (kind, where, _), obj in self.objects.items()
            if kind == plural
            and (not namespace or where == namespace)
            and wanted.items() <= (obj["metadata"].get("labels") or {}).items()
        ]
        return {"kind": "List", "metadata": {"resourceVersion": str(self._version)}, "items": items}

    def _create(self, plural: str, namespace: str, body: Object) -> Object:
        name = body["metadata"]["name"]
        if (why := self.refuse("POST", body)) is not None:
            raise _Error(403, "Forbidden", why)
        if (plural, namespace, name) in self.objects:
            raise _Error(409, "AlreadyExists", f'{plural} "{name}" already exists')
        made = _defaulted(deepcopy(body))
        made["metadata"] |= {
            "namespace": namespace,
            "uid": made["metadata"].get("uid") or str(uuid.uuid4()),
            "creationTimestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "generation": 1,
        }
        self._touch(made)
        self.objects[plural, namespace, name] = made
        return made

    def _change(self, found: Object, body: Object, sub: str) -> Object:
        for field, what in (("uid", "UID"), ("resourceVersion", "resource version")):
            given = body["metadata"].get(field)
            if given and given != found["metadata"][field]:
                raise _Error(409, "Conflict", f"the {what} in the precondition is another one")
        if (why := self.refuse("PUT", body)) is not None:
            raise _Error(403, "Forbidden", why)
        before = deepcopy(found)
        if sub == "status":
            found["status"] = deepcopy(body.get("status", {}))
        else:
            kept = {"status": found["status"]} if "status" in found else {}
            meta = {**body["metadata"], **{key: found["metadata"][key] for key in ("uid", "creationTimestamp")}}
            found.clear()
            found |= _defaulted({**deepcopy(body), **kept, "metadata": deepcopy(meta)})
            if found.get("spec") != before.get("spec"):
                found["metadata"]["generation"] = before["metadata"].get("generation", 1) + 1
        if found != before:
            self._touch(found)
        return found

    def _delete(self, key: tuple[str, str, str], found: Object, options: Object) -> Object:
        uid = (options.get("preconditions") or {}).get("uid")
        if uid and uid != found["metadata"]["uid"]:
            raise _Error(409, "Conflict", "the UID in the precondition is another one")
        del self.objects[key]
        return {"kind": "Status", "status": "Success"}

    def _touch(self, obj: Object) -> None:
        self._version += 1
        obj["metadata"]["resourceVersion"] = str(self._version)


def _merge(found: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(found) if isinstance(found, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merge(merged.get(name), value)
    return merged


def _defaulted(obj: Object) -> Object:
    """What the API server fills in."""
    if obj.get("kind") == "Service":
        obj["spec"] = {"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "sessionAffinity": "None"} | obj["spec"]
    if "stringData" in obj:
        given = {key: base64.b64encode(value.encode()).decode() for key, value in obj.pop("stringData").items()}
        obj["data"] = {**(obj.get("data") or {}), **given}
    return obj


class Heard(CoordinatorPoller):
    """Coordinators that say what a test has them say."""

    def __init__(self) -> None:
        super().__init__(lambda _: None, lambda _: None, lambda _: None)
        self.says: dict[tuple[str, str], Progress] = {}

    def contact(self, key: tuple[str, str]) -> Contact:
        if (said := self.says.get(key)) is None:
            return super().contact(key)
        return Contact(said.number, said, clock.now(), clock.now())


class Site:
    """An API server and all of the operator that writes to one. Watches are left out: ``see`` lists instead."""

    def __init__(self, api: ApiServer, client: Client, trust: float = 0.0) -> None:
        self.api, self.client = api, client
        self.jobs: Queue[tuple[str, str]] = Queue()
        self.searching: Queue[tuple[str, str]] = Queue()
        self.start(trust)

    def start(self, trust: float = 0.0) -> None:
        """An operator that knows nothing: a new process."""
        self.cache = Cache()
        self.runtime = Runtime(self.client, self.cache, self.jobs, self.searching, (), 120.0)
        self.contacts = Heard()
        events = Events(self.client, "test")
        leases = NodeLeases(self.client)
        self.reconciler = Reconciler(
            self.client, self.cache, self.jobs, self.contacts, leases, events, "trainer:1", trust=trust
        )
        self.searches = SearchReconciler(self.client, self.cache, self.searching, self.jobs, self.contacts, events)

    async def see(self) -> None:
        """What a resync does: make the cache equal to what is."""
        await self.runtime.list_everything()

    async def job(self, name: str = "prod", times: int = 2) -> None:
        """See all there is, and decide for a job."""
        for _ in range(times):
            await self.see()
            await self.reconciler.reconcile((NAMESPACE, name))

    async def search(self, name: str = "digits", times: int = 2) -> None:
        for _ in range(times):
            await self.see()
            await self.searches.reconcile((NAMESPACE, name))

    def submit(self, name: str = "prod", **spec: Any) -> Object:
        """A job, as a user would create it."""
        return self._submit(JOB, name, spec)

    def submit_search(self, name: str = "digits", **spec: Any) -> Object:
        return self._submit(SEARCH, name, spec)

    def _submit(self, kind: Kind, name: str, spec: Object) -> Object:
        meta = {"name": name, "namespace": NAMESPACE}
        obj = {"apiVersion": naming.API_VERSION, "kind": kind.name, "metadata": meta, "spec": spec, "status": {}}
        return self.api.put(kind, obj)

    def says(self, type: str, kind: Kind = JOB, name: str = "prod") -> tuple[str, str, str]:
        """Status, reason and message of a condition."""
        obj = self.api.get(kind, name)
        assert obj is not None
        found = {one["type"]: one for one in obj["status"].get("conditions", [])}.get(type)
        return ("", "", "") if found is None else (found["status"], found["reason"], found["message"])


@asynccontextmanager
async def site(trust: float = 0.0) -> AsyncIterator[Site]:
    """A site whose API server listens on the loopback interface."""
    api = ApiServer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", api.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    listener = web.TCPSite(runner, "127.0.0.1", 0)
    await listener.start()
    host, port = runner.addresses[0][:2]
    client = Client(Configuration(host=f"http://{host}:{port}"), naming.FIELD_MANAGER)
    there = Site(api, client, trust)
    try:
        yield there
    finally:
        await there.contacts.close()
        await client.close()
        await runner.cleanup()
