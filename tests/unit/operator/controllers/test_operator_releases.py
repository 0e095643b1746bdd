"""Operators and images of several releases: a field that one adds with a default is none for the others."""

import asyncio
import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import yaml
from adaptrain_api.base import dump, given, manifest_of
from adaptrain_api.phases.phase import Phase
from adaptrain_api.search.job import ArchitectureSearch, ArchitectureSearchSpec
from adaptrain_api.search.pool import pool
from adaptrain_api.training.job import AdaptiveTrainingJob, TrainingJobSpec
from adaptrain_api.training.status import TrainingJobStatus
from adaptrain_api.training.workers import Workers
from adaptrain_operator.controllers import job as job_controller
from adaptrain_operator.core import naming
from adaptrain_operator.core.objects.owned import config_map
from adaptrain_operator.core.objects.pods import coordinator_hash, template_hash
from adaptrain_operator.core.observed import Job
from adaptrain_operator.kube.kinds import CONFIG_MAP, POD

from tests.support.api_server import NAMESPACE, site
from tests.support.paths import ROOT
from tests.unit.operator.controllers.test_operator_ownership import SPEC

Object = dict[str, Any]


class NewPhase(Phase):
    smoothing: float = 0.1


class NewWorkers(Workers):
    pace: str = "steady"


class NewSpec(TrainingJobSpec):
    """A later release's: more fields, each with a default."""

    workers: NewWorkers
    phases: list[NewPhase] | None = None
    fidelity: str = "full"


class NewSearchSpec(ArchitectureSearchSpec):
    curiosity: float = 0.5


class NewSearch(ArchitectureSearch):
    spec: NewSearchSpec


def manifests(kind: str) -> Iterator[Any]:
    root = ROOT
    for path in sorted([*root.glob("examples/**/*.yaml"), *root.glob("docs/**/*.yaml")]):
        for document in yaml.safe_load_all(path.read_text()):
            if isinstance(document, dict) and document.get("kind") == kind:
                yield pytest.param(document, id=path.name)


@pytest.mark.parametrize("manifest", list(manifests("AdaptiveTrainingJob")))
def test_what_is_given_means_the_same(manifest: Object) -> None:
    job = AdaptiveTrainingJob.model_validate(manifest)
    assert AdaptiveTrainingJob.model_validate(manifest_of(job)) == job
    newer = NewSpec.model_validate(manifest["spec"])
    assert newer.fidelity == "full"
    assert TrainingJobSpec.model_validate(given(newer)) == job.spec, "an image of an earlier release reads it"


@pytest.mark.parametrize("manifest", list(manifests("ArchitectureSearch")))
def test_a_search_s_evaluators_of_an_earlier_release_read_it(manifest: Object) -> None:
    search = ArchitectureSearch.model_validate(manifest)
    newer = pool(NewSearch.model_validate(manifest))
    assert newer.spec.search is not None
    again = ArchitectureSearch.model_validate(newer.spec.search)
    assert again.spec == search.spec
    assert TrainingJobSpec.model_validate(given(newer.spec)) == pool(search).spec


def test_what_was_given_by_a_newer_field_is_not_left_out() -> None:
    assert given(NewSpec.model_validate({**SPEC, "fidelity": "half"}))["fidelity"] == "half"


def _job(spec: TrainingJobSpec) -> Job:
    return Job("job", "ns", "uid", 1, 0.0, False, spec, TrainingJobStatus())


def test_no_hash_of_a_running_pod_changes() -> None:
    old, new = _job(TrainingJobSpec.model_validate(SPEC)), _job(NewSpec.model_validate(SPEC))
    assert template_hash(old) == template_hash(new)
    assert coordinator_hash(old) == coordinator_hash(new)
    assert config_map(old)["data"] == config_map(new)["data"]


def test_a_search_s_coordinator_is_kept_however_its_search_is_written() -> None:
    manifest = next(manifests("ArchitectureSearch")).values[0]
    search = ArchitectureSearch.model_validate(manifest)
    short, long = pool(search).spec, pool(search).spec.model_copy(update={"search": dump(search)})
    assert coordinator_hash(_job(short)) == coordinator_hash(_job(long))


KILLED = ["before", "in", "after"]


@pytest.mark.parametrize("killed", KILLED)
def test_an_upgrade_under_a_running_job(killed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        async with site() as at:
            at.submit(**SPEC)
            await at.job()
            # What an operator wrote that gave every default.
            old = at.api.objects[CONFIG_MAP.plural, NAMESPACE, "prod-job"]
            job = AdaptiveTrainingJob.model_validate_json(old["data"]["job.json"])
            at.api.change(CONFIG_MAP, "prod-job", data={"job.json": json.dumps(dump(job))})
            running = deepcopy(at.api.all(POD))
            if killed == "before":
                at.api.remove(POD, "prod-worker-0")
                await at.job()
            if killed == "in":
                at.api.remove(POD, "prod-worker-0")
            monkeypatch.setattr(job_controller, "TrainingJobSpec", NewSpec)
            at.start()
            await at.job()
            if killed == "after":
                at.api.remove(POD, "prod-worker-0")
                await at.job()
            left = {name for name, pod in running.items() if at.api.get(POD, name) == pod}
            assert left == {"prod-coordinator-1", "prod-worker-1"}, "nothing that ran was touched"
            workers = [pod for pod in at.api.all(POD).values() if pod["metadata"]["labels"][naming.ROLE] == "worker"]
            assert len(workers) == 2
            now = at.api.objects[CONFIG_MAP.plural, NAMESPACE, "prod-job"]
            assert AdaptiveTrainingJob.model_validate_json(now["data"]["job.json"]) == job, "the old image reads it"

    asyncio.run(check())
