"""AdaptiveTrainingJob: elastic PyTorch training that goes on while its workers come and go."""

from typing import Annotated, Any, Literal

from pydantic import Field

from adaptrain_api.base import Boolean, FreeForm, Integer, ListMap, Model, Rule, Text
from adaptrain_api.base import dump as dump
from adaptrain_api.components import DataSource, ModelSource
from adaptrain_api.objects import MANAGER, MAX_NAME, OPERATOR, LocalObjectReference, ObjectMeta, immutable, name_rules
from adaptrain_api.phases.phase import Phases
from adaptrain_api.training.checkpoints import Checkpoint, InitialWeights
from adaptrain_api.training.containers import IMAGE
from adaptrain_api.training.failures import PodFailurePolicy
from adaptrain_api.training.script import Script, Source
from adaptrain_api.training.status import TrainingJobStatus
from adaptrain_api.training.workers import Coordinator, Workers

KIND = "AdaptiveTrainingJob"
PLURAL = "adaptivetrainingjobs"


class TrainingJobSpec(Model):
    """What the user wants."""

    image: Annotated[
        Text | None, Field(pattern=IMAGE, max_length=1024, description="Worker image; absent: the chart's.")
    ] = None
    image_pull_policy: Annotated[
        Literal["Always", "IfNotPresent", "Never"] | None, Field(description="As in a container.")
    ] = None
    image_pull_secrets: Annotated[
        list[LocalObjectReference], Field(max_length=16, description="For pulling the images."), ListMap("name")
    ] = []
    workers: Workers = Workers()
    coordinator: Annotated[Coordinator | None, Field(description="The pod that knows who takes part.")] = None
    model: ModelSource | None = None
    data: DataSource | None = None
    phases: Phases | None = None
    initial_weights: InitialWeights | None = None
    script: Script | None = None
    search: Annotated[
        FreeForm | None,
        Field(description="Set by the operator: the spec of the ArchitectureSearch whose trials the workers run."),
    ] = None
    seed: Annotated[Integer, Field(ge=0, le=2**31 - 1, description="Seed of everything random in the job.")] = 0
    checkpoint: Checkpoint | None = None
    max_restarts: Annotated[
        Integer,
        Field(ge=0, le=1000, description="Failures of the workers' own (not disruptions) before the job fails."),
    ] = 10
    pod_failure_policy: PodFailurePolicy | None = None
    suspend: Annotated[Boolean, Field(description="Remove the workers and keep the progress.")] = False
    active_deadline_seconds: Annotated[
        Integer | None, Field(ge=1, le=2**31 - 1, description="Seconds that the job may run before it fails.")
    ] = None
    pre_running_deadline_seconds: Annotated[
        Integer | None,
        Field(ge=1, le=2**31 - 1, description="Seconds until the job fails if its training has not begun by then."),
    ] = None
    managed_by: Annotated[
        Text | None,
        Field(
            pattern=MANAGER,
            max_length=63,
            description=f"Which controller runs the job; absent: {OPERATOR}, this operator, which touches no other's.",
        ),
    ] = None
    ttl_seconds_after_finished: Annotated[
        Integer | None,
        Field(ge=0, le=2**31 - 1, description="Seconds after its end until the job is deleted; absent: never."),
    ] = None

    rules = (
        Rule(
            cel="has(self.script) || has(self.search)"
            " ? !has(self.model) && !has(self.data) && !has(self.phases) && has(self.script) != has(self.search)"
            " : has(self.model) && has(self.data) && has(self.phases)",
            message="give model, data and phases, or else a script, which has its own",
            check=lambda self: (
                {self.model is None, self.data is None, self.phases is None}
                == {self.script is not None or self.search is not None}
                and (self.script is None or self.search is None)
            ),
        ),
        Rule(
            cel="!has(self.initialWeights) || has(self.model)",
            message="initialWeights go into model, which a script has not: remove them, and have the script load them",
            check=lambda self: self.initial_weights is None or self.model is not None,
            path=".initialWeights",
        ),
        Rule(
            cel="has(self.checkpoint) || !has(self.phases) || self.phases.all(p, p.nonFinite != 'rollback')",
            message="a phase whose nonFinite is rollback needs checkpoints to go back to: give checkpoint",
            check=lambda self: (
                self.checkpoint is not None or all(p.non_finite != "rollback" for p in self.phases or [])
            ),
        ),
        Rule(
            cel="!has(self.script) || !has(self.workers) || self.workers.processesPerWorker == 1"
            " || self.script.launcher == 'torchrun'",
            message="a script is one process of each worker unless its launcher is torchrun:"
            " set processesPerWorker to 1, and give the job more workers",
            check=lambda self: self.script is None or self.workers.processes_per_worker == 1 or self.torchrun,
            path=".workers.processesPerWorker",
        ),
        Rule(
            cel="!has(self.script) || self.script.launcher != 'torchrun' || !has(self.checkpoint)"
            " || !has(self.checkpoint.uri)",
            message="a script with launcher torchrun saves files of its own: give it checkpoint.volume, not a uri",
            check=lambda self: not self.torchrun or self.checkpoint is None or self.checkpoint.uri is None,
            path=".checkpoint.uri",
        ),
        Rule(
            cel="has(self.checkpoint) || !has(self.workers) || !has(self.workers.rollingUpdate)"
            " || self.workers.rollingUpdate.maxUnavailable < self.workers.min",
            message="a job whose workers may all leave at once needs checkpoints to go on from: give checkpoint, or"
            " lower workers.rollingUpdate.maxUnavailable below workers.min",
            check=lambda self: self.checkpoint is not None or self.workers.max_unavailable < self.workers.min,
            path=".workers.rollingUpdate.maxUnavailable",
        ),
        Rule(
            cel="!has(self.script) || !has(self.script.resumeArgs) || size(self.script.resumeArgs) == 0"
            " || has(self.checkpoint)",
            message="resumeArgs are added once the checkpoint folder holds what the script resumes from: give"
            " checkpoint.volume",
            check=lambda self: self.script is None or not self.script.resume_args or self.checkpoint is not None,
            path=".script.resumeArgs",
        ),
        *map(immutable, ("model", "data", "phases", "initialWeights", "script", "seed", "managedBy")),
    )

    def of_search(self, part: str = "") -> dict[str, Any]:
        """The spec of the search that this job evaluates, or an object in it. Anybody may write a job: what is missing,
        or is no object, is an empty one."""
        found: Any = (self.search or {}).get("spec")
        if part and isinstance(found, dict):
            found = found.get(part)
        return found if isinstance(found, dict) else {}

    @property
    def source(self) -> Source | None:
        """Where the workers' files come from, beside the image."""
        if self.search is not None:
            given = self.of_search("trial").get("source")
            return None if given is None else Source.model_validate(given)
        return None if self.script is None else self.script.source

    @property
    def wanted_workers(self) -> int:
        """The number of workers to run now: a search whose trials are jobs has none of its own."""
        if self.of_search().get("execution") == "Jobs":
            return 0
        return self.workers.wanted

    @property
    def torchrun(self) -> bool:
        """Whether the job is a script that is written for torchrun."""
        return self.script is not None and self.script.launcher == "torchrun"


class AdaptiveTrainingJob(Model):
    """Elastic PyTorch training that goes on while its workers come and go."""

    api_version: Literal["adaptrain.io/v1alpha1"] = "adaptrain.io/v1alpha1"
    kind: Literal["AdaptiveTrainingJob"] = "AdaptiveTrainingJob"
    metadata: ObjectMeta
    spec: TrainingJobSpec
    status: TrainingJobStatus | None = None

    rules = name_rules(MAX_NAME)
