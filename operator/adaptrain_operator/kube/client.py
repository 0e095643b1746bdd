"""The only code that talks to the API server.

Objects are plain dicts and go through the raw ``ApiClient``: the typed models would cost more memory than everything
else in the operator, and would drop fields that are newer than they are.
"""

import json
import os
import time
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config.incluster_config import load_incluster_config
from kubernetes.aio.config.kube_config import load_kube_config

from adaptrain_operator.kube.errors import ApiError, error
from adaptrain_operator.kube.kinds import Kind

Object = dict[str, Any]

MERGE = "application/merge-patch+json"
CONNECTIONS = 16
"""At once to the API server: each costs a third of a megabyte for TLS alone, for as long as it is kept."""
PAGE = 100
"""Objects per page of a listing: the peak of memory, not its sum, is what a limit kills for."""

Observer = Callable[[str, str, int, float], None]


class Client:
    """Requests with a time limit each, one field manager, and errors as classes."""

    def __init__(self, configuration: Configuration, field_manager: str, observe: Observer | None = None) -> None:
        configuration.connection_pool_maxsize = CONNECTIONS
        self._api = ApiClient(configuration)
        self._field_manager = field_manager
        self._observe = observe

    @classmethod
    async def connect(cls, field_manager: str, observe: Observer | None = None) -> "Client":
        """With the rights of the pod, or where there is none, of the kubeconfig."""
        configuration = Configuration()
        if "KUBERNETES_SERVICE_HOST" in os.environ and not os.environ.get("KUBECONFIG"):
            load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            path = os.environ.get("KUBECONFIG") or None
            await load_kube_config(config_file=path, client_configuration=configuration)  # type: ignore[no-untyped-call]
        return cls(configuration, field_manager, observe)

    async def close(self) -> None:
        await self._api.close()  # type: ignore[no-untyped-call]

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Object:
        return await self._request("GET", kind, kind.path(namespace, name))

    async def pages(
        self, kind: Kind, namespace: str | None = None, selector: str | None = None
    ) -> AsyncIterator[tuple[list[Object], int]]:
        """The pages of a listing with its version: at least one, perhaps empty."""
        token: str | None = None
        while True:
            query = {"limit": str(PAGE)}
            if selector:
                query["labelSelector"] = selector
            if token:
                query["continue"] = token
            page = await self._request("GET", kind, kind.path(namespace), query, timeout=60)
            version = int(page["metadata"].get("resourceVersion") or 0)
            yield page.get("items") or [], version
            token = page["metadata"].get("continue")
            if not token:
                return

    async def list(
        self, kind: Kind, namespace: str | None = None, selector: str | None = None
    ) -> AsyncIterator[tuple[Object, int]]:
        """Every object with the version of the listing that it comes from, page by page."""
        async for page, version in self.pages(kind, namespace, selector):
            for item in page:
                yield item, version

    async def create(self, kind: Kind, namespace: str | None, body: Object) -> Object:
        return await self._request("POST", kind, kind.path(namespace), {"fieldManager": self._field_manager}, body)

    async def patch_status(self, kind: Kind, namespace: str, name: str, body: Object) -> Object:
        query = {"fieldManager": self._field_manager}
        return await self._request("PATCH", kind, kind.path(namespace, name, "status"), query, body, MERGE)

    async def replace(self, kind: Kind, namespace: str, body: Object, timeout: float = 15) -> Object:
        path = kind.path(namespace, body["metadata"]["name"])
        query = {"fieldManager": self._field_manager}
        return await self._request("PUT", kind, path, query, body, timeout=timeout)

    async def delete(
        self, kind: Kind, namespace: str, name: str, uid: str, grace: int | None = None, background: bool = False
    ) -> Object:
        """Delete the object of that uid and no other of its name."""
        body: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}
        if grace is not None:
            body["gracePeriodSeconds"] = grace
        if background:
            body["propagationPolicy"] = "Background"
        return await self._request("DELETE", kind, kind.path(namespace, name), body=body)

    async def _request(
        self,
        method: str,
        kind: Kind,
        path: str,
        query: dict[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
        timeout: float = 15,
    ) -> Object:
        headers = {"Accept": "application/json", "Content-Type": content_type}
        await self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        url = f"{self._api.configuration.host}{path}" + (f"?{urlencode(query)}" if query else "")
        began = time.monotonic()
        try:
            response = await self._api.call_api(
                method, url, headers, body=body, _request_timeout=aiohttp.ClientTimeout(total=timeout)
            )
            text = await response.read()  # type: ignore[no-untyped-call]
        except (TimeoutError, aiohttp.ClientError, OSError) as problem:
            self._report(method, kind, 0, began)
            raise error(0, "NoAnswer", f"{method} {path}: {problem!r}") from problem
        self._report(method, kind, response.status, began)
        if response.status >= 300:
            raise _refusal(response.status, response.reason or "", text, response.headers.get("Retry-After"))
        answer: Object = json.loads(text)
        return answer

    def _report(self, method: str, kind: Kind, code: int, began: float) -> None:
        if self._observe is not None:
            self._observe(method, kind.name, code, time.monotonic() - began)


def _refusal(status: int, reason: str, text: bytes, retry_after: str | None) -> ApiError:
    try:
        said = json.loads(text)
    except ValueError:
        said = {}
    if not isinstance(said, dict):
        said = {}
    after = float(retry_after) if retry_after and retry_after.isdigit() else None
    return error(
        status, said.get("reason") or reason, said.get("message") or text.decode(errors="replace")[:500], after
    )
