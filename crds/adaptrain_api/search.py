"""ArchitectureSearch: which architecture to train, found by trying many of them in warm evaluators."""

import re
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, WithJsonSchema

from adaptrain_api.base import (
    Boolean,
    DnsLabel,
    FreeForm,
    Integer,
    ListMap,
    Model,
    Number,
    Open,
    Readings,
    Rule,
    Rules,
    Text,
    dump,
)
from adaptrain_api.oneshot import ONE_SHOT, trains_supernet
from adaptrain_api.oneshot import RULES as ONE_SHOT_RULES
from adaptrain_api.training import (
    IMAGE,
    MAX_NAME,
    AdaptiveTrainingJob,
    Checkpoint,
    CheckpointVolume,
    Component,
    Condition,
    DataSource,
    LocalObjectReference,
    ModelSource,
    ObjectMeta,
    PodTemplate,
    Source,
    SupervisedPhase,
    TrainingJobSpec,
    Workers,
    immutable,
    name_rules,
)

KIND = "ArchitectureSearch"
PLURAL = "architecturesearches"

POOL, WINNER = "-pool", "-winner"
"""What the names of a search's jobs end with: of the one whose workers are the evaluators, and of the promoted one."""
TRIAL, TRIAL_DIGITS = "-trial-", 6
"""What stands between a search's name and a trial's number in the name of its job; digits that it may have."""

METRIC = r"^[A-Za-z][-A-Za-z0-9_./]*$"
PARAMETER = r"^[A-Za-z_][A-Za-z0-9_]*(\[[0-9]+\])?(\.[A-Za-z_][A-Za-z0-9_]*(\[[0-9]+\])?)*$"
MEASURED = ("parameters", "flops", "latency", "naswot", "synflow")
"""Metrics that evaluators measure, without training, and jobs don't."""
TRAINED = ("nasbench201", "nasnet", "darts", "cnn", "mlp", "transformer", "nasbenchgraph")
"""Built-in spaces whose architectures are models that can be trained."""
UNTRAINED = ("topology",)
"""Those whose architectures are none."""
SPACES = (*TRAINED, *UNTRAINED)
"""All built-in spaces."""
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
MOST_VALUES, LONGEST_VALUE = 200, 253
LONGEST_OF_JOBS = MAX_NAME - len(TRIAL) - TRIAL_DIGITS
"""Characters of a search's name whose trials are jobs."""

Metric = Annotated[Text, Field(pattern=METRIC, max_length=63)]


def _scalar(value: object) -> str | int:
    fits = isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63
    if not fits and not (isinstance(value, str) and len(value) <= LONGEST_VALUE):
        raise ValueError("must be an integer, or else a string: put it in quotes")
    assert isinstance(value, int | str)
    return value


Scalar = Annotated[
    str | int,
    PlainValidator(_scalar),
    WithJsonSchema({"x-kubernetes-int-or-string": True, "maxLength": LONGEST_VALUE}),
    Rules(Rule(cel="type(self) == int || type(self) == string", message="must be an integer, or a string in quotes")),
]
"""A value of a parameter. A structural schema has no better word for several types."""


class Parameter(Model):
    """A choice beside the architecture: of some values, or of numbers between two bounds."""

    name: Annotated[
        Text,
        Field(
            pattern=PARAMETER,
            max_length=253,
            description="The field of the trial that it sets, such as phases[0].optimizer.learningRate or"
            " model.args.width; for a callable, one of its choices.",
        ),
    ]
    values: Annotated[
        list[Scalar] | None,
        Field(
            min_length=1,
            max_length=MOST_VALUES,
            description="These; or else min and max. What is no integer goes in quotes, and means what it would in"
            " YAML without them: a number, true, false, or text.",
        ),
    ] = None
    min: Annotated[Number | None, Field(description="Smallest number.")] = None
    max: Annotated[Number | None, Field(description="Largest number.")] = None
    step: Annotated[
        Number | None, Field(gt=0, description="From number to number; absent: count of them are equally far apart.")
    ] = None
    count: Annotated[Integer, Field(ge=2, le=MOST_VALUES, description="How many numbers, if there is no step.")] = 16
    scale: Annotated[
        Literal["linear", "log"], Field(description="log: equally far apart means by the same factor.")
    ] = "linear"

    rules = (
        Rule(
            cel="has(self.values) ? !has(self.min) && !has(self.max) : has(self.min) && has(self.max)",
            message="a parameter needs values, or else min and max",
            check=lambda self: (
                (self.min is None and self.max is None)
                if self.values is not None
                else (self.min is not None and self.max is not None)
            ),
        ),
        Rule(
            cel="!has(self.min) || !has(self.max) || self.min < self.max",
            message="min must be less than max: change one of them",
            check=lambda self: self.min is None or self.max is None or self.min < self.max,
            path=".min",
        ),
        Rule(
            cel="!has(self.min) || self.scale == 'linear' || self.min > 0.0",
            message="a parameter on a log scale must be greater than 0: raise min, or use scale linear",
            check=lambda self: self.min is None or self.scale == "linear" or self.min > 0,
            path=".min",
        ),
        Rule(
            cel="!has(self.step) || (self.scale == 'linear' && !has(self.values))",
            message="step is for numbers on a linear scale: use count on a log scale, and neither beside values",
            check=lambda self: self.step is None or (self.scale == "linear" and self.values is None),
            path=".step",
        ),
        Rule(
            cel="!has(self.step) || !has(self.min) || !has(self.max)"
            f" || (self.max - self.min) / self.step < {float(MOST_VALUES)}",
            message=f"a parameter may have at most {MOST_VALUES} values: raise step",
            check=lambda self: (
                self.step is None
                or self.min is None
                or self.max is None
                or (self.max - self.min) / self.step < MOST_VALUES
            ),
            path=".step",
        ),
    )


class SearchSpace(Model):
    """Where to search: a space of architectures, parameters of your own, or both."""

    name: Annotated[
        Component | None,
        Field(description="A built-in space, or module:callable of one in the image; absent: parameters alone."),
    ] = None
    args: Annotated[FreeForm, Field(description="Keyword arguments of the space.")] = {}
    parameters: Annotated[list[Parameter], Field(max_length=64), ListMap("name")] = []

    rules = (
        Rule(
            cel="has(self.name) || (has(self.parameters) && size(self.parameters) > 0)",
            message="space needs a name, or parameters, so that there is something to choose",
            check=lambda self: self.name is not None or bool(self.parameters),
        ),
        Rule(
            cel=f"!has(self.name) || self.name in [{', '.join(map(repr, SPACES))}] || self.name.contains(':')",
            message=f"space.name must be {', '.join(SPACES)}, or module:callable from the image",
            check=lambda self: self.name is None or self.name in SPACES or ":" in self.name,
            path=".name",
        ),
    )


class Objective(Model):
    """What makes one architecture better than another."""

    metric: Annotated[
        Metric,
        Field(description=f"One that the trial reports, such as val/accuracy, or {', '.join(MEASURED)}."),
    ]
    goal: Annotated[Literal["maximize", "minimize"], Field(description="Which direction is better.")]


class Constraint(Model):
    """What an architecture must meet, however good it is otherwise."""

    metric: Annotated[Metric, Field(description="One that the trial reports.")]
    at_least: Annotated[Number | None, Field(description="Smallest value that is allowed.")] = None
    at_most: Annotated[Number | None, Field(description="Largest value that is allowed.")] = None

    rules = (
        Rule(
            cel="has(self.atLeast) || has(self.atMost)",
            message="give atLeast, atMost or both",
            check=lambda self: self.at_least is not None or self.at_most is not None,
        ),
        Rule(
            cel="!has(self.atLeast) || !has(self.atMost) || self.atLeast <= self.atMost",
            message="atLeast must be at most atMost: nothing could meet both",
            check=lambda self: self.at_least is None or self.at_most is None or self.at_least <= self.at_most,
        ),
    )


class SearchAlgorithm(Model):
    """How to choose what is tried next."""

    name: Annotated[AlgorithmName, Field(description="See the table of algorithms in the documentation.")] = "auto"
    args: Annotated[FreeForm, Field(description="Keyword arguments of the algorithm.")] = {}


class Budget(Model):
    """When the search ends: whichever comes first."""

    trials: Annotated[Integer | None, Field(ge=1, le=1000000, description="Trials that end, however they end.")] = None
    seconds: Annotated[Integer | None, Field(ge=1, le=2**31 - 1, description="Seconds from the first trial on.")] = None
    evaluator_seconds: Annotated[
        Integer | None, Field(ge=1, le=2**53, description="Seconds that trials took, added up over all evaluators.")
    ] = None

    rules = (
        Rule(
            cel="has(self.trials) || has(self.seconds) || has(self.evaluatorSeconds)",
            message="budget needs trials, seconds or evaluatorSeconds, so that the search has an end",
            check=lambda self: {None} != {self.trials, self.seconds, self.evaluator_seconds},
        ),
    )


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
    phases: Annotated[list[SupervisedPhase] | None, Field(min_length=1, max_length=1), ListMap("name")] = None
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


class Gate(Model):
    """What the winner has to reach."""

    metric: Annotated[Metric, Field(description="One that its trial reported.")]
    at_least: Annotated[Number | None, Field(description="Smallest value that passes.")] = None
    at_most: Annotated[Number | None, Field(description="Largest value that passes.")] = None
    better_than: Annotated[
        DnsLabel | None,
        Field(description="A job of this namespace whose model's value of this metric has to be surpassed."),
    ] = None

    rules = (
        Rule(
            cel="has(self.atLeast) || has(self.atMost) || has(self.betterThan)",
            message="a gate needs atLeast, atMost or betterThan",
            check=lambda self: {None} != {self.at_least, self.at_most, self.better_than},
        ),
    )


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
    image_pull_secrets: Annotated[list[LocalObjectReference], Field(max_length=16), ListMap("name")] = []
    space: SearchSpace
    objectives: Annotated[
        list[Objective],
        Field(min_length=1, max_length=4, description="One, or several that are traded off."),
        ListMap("metric"),
    ]
    constraints: Annotated[list[Constraint], Field(max_length=16), ListMap("metric")] = []
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


class TrialSummary(Open):
    """A trial that ended, in few words."""

    trial: int
    values: Annotated[Readings, Field(max_length=20, description="Of the objectives and constraints.")]
    architecture: Annotated[str, Field(description="What was chosen, as one line of JSON.")]


class TrialCounts(Open):
    """How many trials there are, by state."""

    complete: int = 0
    pruned: int = 0
    failed: int = 0
    running: int = 0


class ArchitectureSearchStatus(Open):
    """What is. Written by the operator alone."""

    phase: Literal["Pending", "Running", "Suspended", "Succeeded", "Failed"] | None = None
    observed_generation: int | None = None
    conditions: Annotated[list[Condition], ListMap("type")] = []
    evaluators: Annotated[
        str | None, Field(description="Evaluators ready/wanted; with execution Jobs, trials' jobs that run/at most.")
    ] = None
    trials: TrialCounts | None = None
    progress: Annotated[str | None, Field(description="Trials ended/wanted.")] = None
    best: Annotated[str | None, Field(description="The best trial's first objective.")] = None
    top: Annotated[list[TrialSummary], Field(description="The best trials, at most 10.")] = []
    pareto_size: Annotated[int | None, Field(description="Trials that no other one surpasses in every objective.")] = (
        None
    )
    evaluations_per_minute: Annotated[float | None, Field(description="Of the last minutes.")] = None
    eta: Annotated[str | None, Field(description="Time left, estimated.")] = None
    budget: Annotated[Budget | None, Field(description="That the search was run with last.")] = None
    promoted_job: Annotated[str | None, Field(description="The job that trains the winner.")] = None
    start_time: datetime | None = None
    completion_time: datetime | None = None


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


def pool(search: ArchitectureSearch) -> AdaptiveTrainingJob:
    """The job whose workers are a search's evaluators, and whose coordinator holds its study. If its trials are jobs
    themselves, it has no workers."""
    spec, most = search.spec, max(1, search.spec.parallelism.max)
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
                min=max(1, spec.parallelism.min), max=most, replicas=most, **_fields(spec.evaluators or PodTemplate())
            ),
            search=dump(search),
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
    spec = ArchitectureSearchSpec.model_validate(job.search["spec"])
    trains = spec.execution == "Pool" and spec.trial.callable is None
    return trains and (trains_supernet(spec) or (spec.promote is not None and spec.promote.weights))


def _fields(model: Model) -> dict[str, Any]:
    return {name: getattr(model, name) for name in type(model).model_fields}


def set_parameter(target: dict[str, Any], name: str, value: Any) -> None:
    """Set the field of a JSON object that a parameter's name says, such as ``phases[0].optimizer.learningRate``.

    Raises:
        ValueError: an index is beyond its list, or a field on the way is no object.
    """
    here: Any = target
    steps = [int(step[1:-1]) if step[0] == "[" else step for step in re.findall(r"[^.\[\]]+|\[[0-9]+\]", name)]
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        if isinstance(step, int) and (not isinstance(here, list) or step >= len(here)):
            raise ValueError(f"space.parameters: {name}: the trial has no such item")
        if isinstance(step, str) and not isinstance(here, dict):
            raise ValueError(f"space.parameters: {name}: {step} is not the field of an object in the trial")
        if following is None:
            here[step] = value
        else:
            here = here[step] if isinstance(step, int) else here.setdefault(step, {})
