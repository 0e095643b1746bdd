"""A real API server for the tests in this folder.

``CLUSTER`` says which: ``local`` (the default: the cluster of ``python -m localcluster``, brought up if need be) or
``current`` (the kubeconfig's current context).
"""

import json
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from adaptrain_api.crd import RESOURCES, Resource, custom_resource_definition

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@dataclass(frozen=True)
class Answer:
    """What the API server said."""

    status: int
    body: Any

    @property
    def ok(self) -> bool:
        return self.status < 300

    @property
    def message(self) -> str:
        return str(self.body.get("message", ""))


class Api:
    """Requests as they are: a client library would mend what the tests mean to send broken."""

    def __init__(self, kubeconfig: str) -> None:
        from kubernetes import client, config

        settings = client.Configuration()
        config.load_kube_config(kubeconfig or None, client_configuration=settings)
        settings.connection_pool_maxsize = 16
        self._client = client.ApiClient(settings)
        self._host = settings.host
        self._pool = self._client.rest_client.pool_manager

    def __call__(
        self, method: str, path: str, body: Any = None, accept: str = "application/json", kind: str = "application/json"
    ) -> Answer:
        headers = {"Accept": accept, "Content-Type": kind}
        self._client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        data = None if body is None else json.dumps(body).encode()
        answer = self._pool.request(method, self._host + path, body=data, headers=headers, timeout=60)
        return Answer(answer.status, json.loads(answer.data))


def _answers(cluster: Any) -> bool:
    """Whether it can be used as it is: bringing it up would also mend nodes that another test has stopped."""
    try:
        return Api(str(cluster.kubeconfig))("GET", "/version").ok
    except Exception:  # no kubeconfig, no server, or one that doesn't answer: all mean to bring it up
        return False


@pytest.fixture(scope="session")
def kubeconfig() -> str:
    """The path of a kubeconfig; empty means the usual places."""
    match os.environ.get("CLUSTER", "local"):
        case "current":
            return os.environ.get("KUBECONFIG", "")
        case "local":
            from localcluster.api import Cluster

            cluster = Cluster()
            if not _answers(cluster):
                cluster.up(nodes=0)
            return str(cluster.kubeconfig)
        case other:
            pytest.fail(f"CLUSTER={other} is not known to these tests: use local or current")


@pytest.fixture(scope="session")
def api(kubeconfig: str) -> Api:
    return Api(kubeconfig)


@pytest.fixture(scope="session")
def crd(api: Api) -> str:
    """The CRDs of this checkout, installed; returns the path of the collections without a namespace."""
    changed = [_install(api, resource) for resource in RESOURCES]
    if any(changed):
        # Nothing tells when a changed schema is in force; the API server takes it up within two seconds.
        time.sleep(3)
    return "/apis/adaptrain.io/v1alpha1"


def _install(api: Api, resource: Resource) -> bool:
    """Whether it was another one before."""
    definition = custom_resource_definition(resource)
    name = definition["metadata"]["name"]
    before = api("GET", f"{CRDS}/{name}")
    apply = f"{CRDS}/{name}?fieldManager=adaptrain-tests&force=true"
    answer = api("PATCH", apply, definition, kind="application/apply-patch+yaml")
    assert answer.ok, answer.message
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        conditions = api("GET", f"{CRDS}/{name}").body["status"]["conditions"] or []  # null at first
        if any(item["type"] == "Established" and item["status"] == "True" for item in conditions):
            break
        time.sleep(0.2)
    else:
        pytest.fail("the API server did not establish the CRD within 60 s")
    return not before.ok or bool(before.body["metadata"]["generation"] != answer.body["metadata"]["generation"])


@pytest.fixture(scope="session")
def namespace(api: Api) -> Iterator[str]:
    """A namespace of this test run's own."""
    name = f"crd-test-{uuid.uuid4().hex[:8]}"
    answer = api("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    assert answer.ok, answer.message
    yield name
    api("DELETE", f"/api/v1/namespaces/{name}")


@pytest.fixture(scope="session")
def jobs(crd: str, namespace: str) -> str:
    """The path under which the tests create their jobs."""
    return f"{crd}/namespaces/{namespace}/adaptivetrainingjobs"
