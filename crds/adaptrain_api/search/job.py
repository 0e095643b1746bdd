"""ArchitectureSearch: which architecture to train, found by trying many of them in warm evaluators."""

from typing import Annotated, Literal

from pydantic import Field

from adaptrain_api.base import Boolean, DnsLabel, FreeForm, Integer, ListMap, Model, Rule, Text
from adaptrain_api.components import Component, DataSource, ModelSource
from adaptrain_api.objects import MAX_NAME, LocalObjectReference, ObjectMeta, immutable, name_rules
from adaptrain_api.phases.phase import Phases
from adaptrain_api.search.algorithms import ONE_SHOT
from adaptrain_api.search.algorithms import RULES as ONE_SHOT_RULES
from adaptrain_api.search.goals import MEASURED, Budget, Constraint, Gate, Objective
from adaptrain_api.search.space import UNTRAINED, SearchSpace
from adaptrain_api.search.status import ArchitectureSearchStatus
from adaptrain_api.training.checkpoints import Checkpoint, CheckpointVolume
from adaptrain_api.training.containers import IMAGE
from adaptrain_api.training.script import Source
from adaptrain_api.training.workers import Coordinator, PodTemplate, Workers

KIND = "ArchitectureSearch"
PLURAL = "architecturesearches"

POOL, WINNER = "-pool", "-winner"
"""What the names of a search's jobs end with: of the one whose workers are the evaluators, and of the promoted one."""
TRIAL, TRIAL_DIGITS = "-trial-", 6
"""What stands between a search's name and a trial's number in the name of its job; digits that it may have."""
AlgorithmName = Literal[
    "auto",
    "random",
    "localSearch",
    "evolution",
    "tpe",
    "gp",
    "nsga2",
    "reinforce",
    "ppo",
    "neat",
    "predictor",
    "darts",
    "enas",
    "spos",
]
OF_ONE_OBJECTIVE = ("localSearch", "reinforce", "ppo", "neat", "predictor", *ONE_SHOT)
HEAVY = ("gp", "predictor")
"""Algorithms that take torch, and seconds to think: they run in a process of their own."""
LONGEST_OF_JOBS = MAX_NAME - len(TRIAL) - TRIAL_DIGITS
"""Characters of a search's name whose trials are jobs."""


class SearchAlgorithm(Model):
    """How to choose what is tried next."""

    name: Annotated[AlgorithmName, Field(description="See the table of algorithms in the documentation.")] = "auto"
    args: Annotated[FreeForm, Field(description="Keyword arguments of the algorithm.")] = {}


class Parallelism(Model):
    """How many trials run at once."""

    min: Annotated[Integer, Field(ge=0, le=1000, description="Evaluators that voluntary disruptions leave.")] = 0
    max: Annotated[
        Integer,
        Field(
            ge=0,
            le=1000,
            description="Evaluators, or trials' jobs, at once, as long as there is something to try; 0: none.",
        ),
    ] = 1

    rules = (
        Rule(
            cel="self.min <= self.max",
            message="parallelism.min must be at most parallelism.max: lower min or raise max",
            check=lambda self: self.min <= self.max,
        ),
    )


class Trial(Model):
    """What is done with an architecture: it is trained, or a function of yours is called with it."""

    model: ModelSource | None = None
    data: DataSource | None = None
    phases: Phases | None = None
    callable: Annotated[
        Component | None,
        Field(description="module:callable that takes a trial and returns its metrics, instead of training."),
    ] = None
    source: Annotated[
        Source | None, Field(description="Files that callable and data find to import; absent: the image's.")
    ] = None
    timeout_seconds: Annotated[
        Integer | None, Field(ge=1, le=2**31 - 1, description="Seconds after which a trial has failed; absent: none.")
    ] = None
    workers: Annotated[
        Workers | None, Field(description="With execution Jobs, the workers of each trial's job; absent: one.")
    ] = None
    checkpoint: Annotated[
        Checkpoint | None,
        Field(description="With execution Jobs, where each trial's job saves; absent: what is suspended begins again."),
    ] = None

    rules = (
        Rule(
            cel="has(self.callable)"
            " ? !has(self.model) && !has(self.data) && !has(self.phases)"
            " : has(self.data) && has(self.phases)",
            message="give data and phases, or else a callable, which has its own",
            check=lambda self: (
                {self.data is None, self.phases is None} == {self.callable is not None}
                and (self.callable is None or self.model is None)
            ),
        ),
        Rule(
            cel="!has(self.callable) || self.callable.contains(':')",
            message="trial.callable must be module:callable",
            check=lambda self: self.callable is None or ":" in self.callable,
            path=".callable",
        ),
    )


class Pruning(Model):
    """Which trials are stopped early, judged by the objective's values on their way."""

    name: Annotated[
        Literal["median", "successiveHalving", "hyperband"],
        Field(
            description="median: who is worse than the median of the others then. successiveHalving: who is not among"
            " the best at certain steps. hyperband: the same, with several sets of steps."
        ),
    ]
    args: Annotated[FreeForm, Field(description="Keyword arguments of the rule.")] = {}


class Storage(Model):
    """Where the study is kept. It outlives evaluators and coordinators, and other searches can start from it."""

    volume: Annotated[CheckpointVolume | None, Field(description="For a journal file; or else postgresql.")] = None
    postgresql: Annotated[
        LocalObjectReference | None,
        Field(description="A Secret whose key url is postgresql://user:password@host/database."),
    ] = None

    rules = (
        Rule(
            cel="has(self.volume) != has(self.postgresql)",
            message="storage needs either a volume or postgresql: give one of them",
            check=lambda self: (self.volume is None) != (self.postgresql is None),
        ),
    )


class WarmStart(Model):
    """What is known before the first trial."""

    search: Annotated[DnsLabel, Field(description="Another search of this namespace, over the same space and storage.")]


class Promotion(Model):
    """What becomes of the winner."""

    job: Annotated[
        FreeForm,
        Field(description="Spec of the AdaptiveTrainingJob; the winner's model and parameters go into it."),
    ]
    gate: Gate | None = None
    weights: Annotated[
        Boolean,
        Field(
            description="Start from the weights that the winner's trial left on storage.volume. false, or if there are"
            " none: from random ones."
        ),
    ] = True


class ArchitectureSearchSpec(Model):
    """What the user wants."""

    image: Annotated[
        Text | None, Field(pattern=IMAGE, max_length=1024, description="Evaluators' image; absent: the chart's.")
    ] = None
    image_pull_policy: Annotated[
        Literal["Always", "IfNotPresent", "Never"] | None, Field(description="As in a container.")
    ] = None
    image_pull_secrets: Annotated[
        list[LocalObjectReference],
        Field(max_length=16, description="Secrets with which the images are pulled."),
        ListMap("name"),
    ] = []
    space: SearchSpace
    objectives: Annotated[
        list[Objective],
        Field(min_length=1, max_length=4, description="One, or several that are traded off."),
        ListMap("metric"),
    ]
    constraints: Annotated[
        list[Constraint],
        Field(max_length=16, description="What an architecture must keep to; one that breaks them is never the best."),
        ListMap("metric"),
    ] = []
    algorithm: SearchAlgorithm = SearchAlgorithm()
    budget: Budget
    parallelism: Parallelism = Parallelism()
    execution: Annotated[
        Literal["Pool", "Jobs"],
        Field(
            description="Pool: warm evaluators run one trial after the other. Jobs: each trial is an"
            " AdaptiveTrainingJob of its own, which may have several workers."
        ),
    ] = "Pool"
    evaluators: Annotated[PodTemplate | None, Field(description="The evaluators' pods.")] = None
    coordinator: Annotated[Coordinator | None, Field(description="The pod that holds the study.")] = None
    trial: Trial
    pruning: Pruning | None = None
    seed: Annotated[Integer, Field(ge=0, le=2**31 - 1, description="Seed of everything random in the search.")] = 0
    max_failed_trials: Annotated[
        Integer, Field(ge=0, le=1000000, description="Trials that may fail before the search does.")
    ] = 10
    max_restarts: Annotated[
        Integer, Field(ge=0, le=1000, description="Failures of the evaluators' own before the search fails.")
    ] = 10
    storage: Storage | None = None
    warm_start: WarmStart | None = None
    promote: Promotion | None = None
    suspend: Annotated[Boolean, Field(description="Remove the evaluators and keep the study.")] = False
    active_deadline_seconds: Annotated[
        Integer | None, Field(ge=1, le=2**31 - 1, description="Seconds that the search may run before it fails.")
    ] = None
    ttl_seconds_after_finished: Annotated[
        Integer | None,
        Field(ge=0, le=2**31 - 1, description="Seconds after its end until the search is deleted; absent: never."),
    ] = None

    rules = (
        Rule(
            cel="has(self.trial.callable) || has(self.space.name) != has(self.trial.model)",
            message="the architecture comes from space.name or from trial.model: give one of them",
            check=lambda self: (
                self.trial.callable is not None or (self.space.name is None) != (self.trial.model is None)
            ),
            path=".trial",
        ),
        Rule(
            cel="!has(self.warmStart) || has(self.storage)",
            message="warmStart reads another search's study from the storage of both: give storage",
            check=lambda self: self.warm_start is None or self.storage is not None,
            path=".warmStart",
        ),
        Rule(
            cel=f"size(self.objectives) == 1 || !(self.algorithm.name in [{', '.join(map(repr, OF_ONE_OBJECTIVE))}])",
            message="this algorithm takes one objective: use auto, nsga2, tpe or evolution for several",
            check=lambda self: len(self.objectives) == 1 or self.algorithm.name not in OF_ONE_OBJECTIVE,
            path=".algorithm.name",
        ),
        Rule(
            cel="has(self.trial.callable) || !has(self.space.name)"
            f" || !(self.space.name in [{', '.join(map(repr, UNTRAINED))}])",
            message="architectures of this space are no models that a job trains: give trial.callable",
            check=lambda self: self.trial.callable is not None or self.space.name not in UNTRAINED,
            path=".trial",
        ),
        Rule(
            cel="!has(self.pruning) || size(self.objectives) == 1",
            message="pruning judges by one objective: remove it, or leave one objective",
            check=lambda self: self.pruning is None or len(self.objectives) == 1,
            path=".pruning",
        ),
        Rule(
            cel="self.algorithm.name != 'neat' || (has(self.space.name) && self.space.name == 'topology')",
            message="neat grows networks: set space.name to topology",
            check=lambda self: self.algorithm.name != "neat" or self.space.name == "topology",
            path=".algorithm.name",
        ),
        Rule(
            cel="!has(self.promote) || !has(self.trial.callable) || has(self.space.name)",
            message="promote needs an architecture that a job can train: give space.name, or trial.data and phases",
            check=lambda self: self.promote is None or self.trial.callable is None or self.space.name is not None,
            path=".promote",
        ),
        Rule(
            cel="self.execution == 'Jobs' || (!has(self.trial.workers) && !has(self.trial.checkpoint))",
            message="trial.workers and trial.checkpoint are of trials that are jobs: set execution to Jobs,"
            " or use evaluators and storage",
            check=lambda self: self.execution == "Jobs" or self.trial.workers is self.trial.checkpoint is None,
            path=".trial",
        ),
        Rule(
            cel="self.execution == 'Pool' || (!has(self.trial.callable) && !has(self.trial.source))",
            message="execution Jobs trains each trial as a job, of what is in the image: give trial.data and phases"
            " without source, or set execution to Pool",
            check=lambda self: self.execution == "Pool" or self.trial.callable is self.trial.source is None,
            path=".trial",
        ),
        Rule(
            cel="self.execution == 'Pool' || (!has(self.evaluators) && self.parallelism.min == 0)",
            message="execution Jobs has no evaluators: put their fields into trial.workers, and leave out"
            " parallelism.min",
            check=lambda self: self.execution == "Pool" or (self.evaluators is None and self.parallelism.min == 0),
            path=".execution",
        ),
        Rule(
            cel="self.execution == 'Pool'"
            f" || (self.objectives.all(o, !(o.metric in {list(MEASURED)!r}))"
            f" && (!has(self.constraints) || self.constraints.all(c, !(c.metric in {list(MEASURED)!r}))))",
            message=f"jobs don't measure {', '.join(MEASURED)}: set execution to Pool, or name other metrics",
            check=lambda self: self.execution == "Pool" or not set(MEASURED) & set(metrics_named(self)),
            path=".objectives",
        ),
        *ONE_SHOT_RULES,
        *(
            immutable(field, "search")
            for field in (
                *("space", "objectives", "constraints", "algorithm", "execution", "trial", "pruning", "seed"),
                *("storage", "warmStart"),
            )
        ),
    )

    @property
    def trains_supernet(self) -> bool:
        """Whether the first trial is the supernet, of which all cells are parts."""
        return self.algorithm.name in ONE_SHOT


class ArchitectureSearch(Model):
    """Neural architecture search over many trials, in warm evaluators or as jobs; the winner becomes a training job."""

    api_version: Literal["adaptrain.io/v1alpha1"] = "adaptrain.io/v1alpha1"
    kind: Literal["ArchitectureSearch"] = "ArchitectureSearch"
    metadata: ObjectMeta
    spec: ArchitectureSearchSpec
    status: ArchitectureSearchStatus | None = None

    rules = (
        *name_rules(MAX_NAME - len(WINNER)),
        Rule(
            cel=f"self.spec.execution == 'Pool' || size(self.metadata.name) <= {LONGEST_OF_JOBS}",
            message=f"with execution Jobs, metadata.name must have at most {LONGEST_OF_JOBS} characters, so that the"
            " names of the trials' jobs fit: shorten it",
            check=lambda self: self.spec.execution == "Pool" or len(self.metadata.name) <= LONGEST_OF_JOBS,
        ),
    )


def metrics_named(spec: ArchitectureSearchSpec) -> list[str]:
    """The metrics of objectives and constraints, each once."""
    named = [one.metric for one in spec.objectives] + [one.metric for one in spec.constraints]
    return list(dict.fromkeys(named))
