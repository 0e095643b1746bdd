"""A search's evaluators as the workers of a job."""

from typing import Any

from adaptrain_api.base import Model, manifest_of
from adaptrain_api.objects import ObjectMeta
from adaptrain_api.search.job import POOL, ArchitectureSearch, ArchitectureSearchSpec
from adaptrain_api.training.checkpoints import Checkpoint
from adaptrain_api.training.job import AdaptiveTrainingJob, TrainingJobSpec
from adaptrain_api.training.workers import PodTemplate, Workers


def pool(search: ArchitectureSearch, evaluators: int | None = None) -> AdaptiveTrainingJob:
    """The job whose workers are a search's evaluators, and whose coordinator holds its study. If its trials are jobs
    themselves, it has no workers.

    Args:
        evaluators: how many there is something to try for; None: as many as there may be.
    """
    spec, most = search.spec, max(1, search.spec.parallelism.max)
    wanted = most if evaluators is None else max(1, min(most, evaluators))
    volume = spec.storage.volume if spec.storage is not None else None
    return AdaptiveTrainingJob(
        metadata=ObjectMeta(
            name=search.metadata.name + POOL, namespace=search.metadata.namespace, uid=search.metadata.uid
        ),
        spec=TrainingJobSpec(
            image=spec.image,
            image_pull_policy=spec.image_pull_policy,
            image_pull_secrets=spec.image_pull_secrets,
            workers=Workers(
                min=min(max(1, spec.parallelism.min), wanted),
                max=most,
                replicas=wanted,
                **_fields(spec.evaluators or PodTemplate()),
            ),
            coordinator=spec.coordinator,
            search=manifest_of(search),
            checkpoint=None if volume is None else Checkpoint(volume=volume),
            seed=spec.seed,
            max_restarts=spec.max_restarts,
            suspend=spec.suspend or spec.parallelism.max == 0,
        ),
    )


def leaves_weights(job: TrainingJobSpec) -> bool:
    """Whether a pool's evaluators leave weights on its volume: of trials, which the winner's job is to start from, or
    of the network that all cells share."""
    if job.search is None or job.checkpoint is None:
        return False
    spec = ArchitectureSearchSpec.model_validate(job.of_search())
    trains = spec.execution == "Pool" and spec.trial.callable is None
    return trains and (spec.trains_supernet or (spec.promote is not None and spec.promote.weights))


def _fields(model: Model) -> dict[str, Any]:
    return {name: getattr(model, name) for name in type(model).model_fields}
