"""Kopf's part: watching. Each handler passes on what it saw; none acts on it, and none writes to the object."""

from typing import Any

import kopf
from adaptrain_api import objects
from adaptrain_api.search import job as searches
from adaptrain_api.training import job as jobs
from kopf._core.reactor.inventory import ResourceMemories, ResourceMemory

from adaptrain_operator.controllers.base import Runtime
from adaptrain_operator.core import naming
from adaptrain_operator.kube.client import PAGE
from adaptrain_operator.kube.kinds import BUDGET, JOB, NODE, POD, POLICY, SEARCH, SERVICE

OWNED = {naming.MANAGED_BY: naming.FIELD_MANAGER}


def registry(runtime: Runtime, nodes: bool) -> kopf.OperatorRegistry:
    """The handlers, bound to where they report to."""
    handlers = kopf.OperatorRegistry()

    @kopf.on.login(registry=handlers)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.event(objects.GROUP, objects.VERSION, jobs.PLURAL, registry=handlers)
    async def job(event: Any, **_: Any) -> None:
        await runtime.saw(JOB, event)

    @kopf.on.event(objects.GROUP, objects.VERSION, searches.PLURAL, registry=handlers)
    async def architecture_search(event: Any, **_: Any) -> None:
        await runtime.saw(SEARCH, event)

    @kopf.on.event("", "v1", "pods", registry=handlers, labels=OWNED)
    async def pod(event: Any, **_: Any) -> None:
        await runtime.saw(POD, event)

    @kopf.on.event("", "v1", "services", registry=handlers, labels=OWNED)
    async def service(event: Any, **_: Any) -> None:
        await runtime.saw(SERVICE, event)

    @kopf.on.event("policy", "v1", "poddisruptionbudgets", registry=handlers, labels=OWNED)
    async def budget(event: Any, **_: Any) -> None:
        await runtime.saw(BUDGET, event)

    @kopf.on.event("networking.k8s.io", "v1", "networkpolicies", registry=handlers, labels=OWNED)
    async def policy(event: Any, **_: Any) -> None:
        await runtime.saw(POLICY, event)

    if nodes:

        @kopf.on.event("", "v1", "nodes", registry=handlers)
        async def node(event: Any, **_: Any) -> None:
            await runtime.saw(NODE, event)

    return handlers


class _NoDiffs(kopf.DiffBaseStorage):
    """Nothing here asks what changed. Kopf's own copies each object deeply for it, half of the work on an event."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None


class _NoProgress(kopf.ProgressStorage):
    """No handler has a progress to keep: none but ``on.event`` are used."""

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None

    def purge(self, **_: Any) -> None:
        return None

    def touch(self, **_: Any) -> None:
        return None

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        return essence


class NoMemories(ResourceMemories):
    """Keeps nothing of an object between its events: handlers of events need nothing, and there may be thousands."""

    async def recall(
        self,
        raw_body: kopf.RawBody,
        *,
        memobase: Any = None,
        noticed_by_listing: bool = False,
        ephemeral: bool = True,
    ) -> ResourceMemory:
        return await super().recall(raw_body, memobase=memobase, noticed_by_listing=noticed_by_listing, ephemeral=True)


def configure() -> kopf.OperatorSettings:
    """Kopf without anything that writes, elects or discovers."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.persistence.finalizer = f"{objects.GROUP}/finalizer"
    settings.persistence.progress_storage = _NoProgress()
    settings.persistence.diffbase_storage = _NoDiffs()
    settings.networking.request_timeout = 60
    settings.networking.connect_timeout = 5
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.connect_timeout = 5
    settings.watching.chunk_size = PAGE
    settings.queueing.idle_timeout = 0.1  # a listing's thousands of objects have a queue and a task each for so long
    settings.queueing.exit_timeout = 1.0
    settings.process.ultimate_exiting_timeout = 20
    for kind in ("pods", "services", "poddisruptionbudgets", "networkpolicies"):
        settings.watching.label_selectors[kind] = naming.OWNED_SELECTOR
    return settings
