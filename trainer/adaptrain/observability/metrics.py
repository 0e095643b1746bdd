"""Every metric of a job, in one place. Names and help texts are the documentation's source."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LABELS = ("job_namespace", "job_name")
SEARCH_LABELS = ("search_namespace", "search_name")

_STALLS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0)
_STEPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_TRIALS = (0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 1800.0, 7200.0, 36000.0)


MOST_VALIDATIONS = 256
"""Names of validation metrics that are exported; more are left out."""


REASONS = ("odd", "slow", "crowded", "full", "descriptors", "error")


class Refusals:
    """What listeners close, by listener (``control``, ``http``, ``rendezvous``) and reason: ``odd`` (no message of
    ours, or no proof of the token), ``slow``, ``crowded``, ``full``, ``descriptors`` or ``error`` (of ours)."""

    def __init__(self, registry: CollectorRegistry, labels: tuple[str, str], names: tuple[str, str]) -> None:
        self._counter = Counter(
            "adaptrain_refused_connections",
            "Connections that were closed for what they did or for want of room.",
            (*labels, "listener", "reason"),
            registry=registry,
        )
        self._names = names
        # From the beginning, so that the first one shows as an increase.
        for listener in ("control", "http", "rendezvous"):
            for reason in REASONS:
                self._counter.labels(*names, listener, reason)

    def count(self, listener: str, reason: str) -> None:
        self._counter.labels(*self._names, listener, reason).inc()


class JobMetrics:
    """What the coordinator exports about the whole job."""

    def __init__(self, namespace: str, name: str) -> None:
        self.registry = CollectorRegistry()

        def gauge(metric: str, text: str) -> Gauge:
            return Gauge(f"adaptrain_job_{metric}", text, LABELS, registry=self.registry).labels(namespace, name)

        def counter(metric: str, text: str) -> Counter:
            return Counter(f"adaptrain_job_{metric}", text, LABELS, registry=self.registry).labels(namespace, name)

        self.workers = gauge("workers", "Workers that take part in training.")
        self.step = gauge("step", "Optimizer steps applied.")
        self.epoch = gauge("epoch", "Complete passes over the training set.")
        self.loss = gauge("loss", "Training loss, mean of the newest steps.")
        self.learning_rate = gauge("learning_rate", "Learning rate.")
        self.batch_size = gauge("batch_size", "Samples per step, over all workers.")
        self.samples_per_second = gauge("samples_per_second", "Training throughput.")
        self.step_seconds = gauge("step_seconds", "Median duration of the newest steps, seconds.")
        self.goodput = gauge(
            "goodput_ratio", "Part of the time since the first step that was spent on steps that count."
        )
        self.skipped_steps = gauge(
            "skipped_steps", "Steps that were passed over since their loss or gradient was not finite."
        )
        self.eta_seconds = gauge("eta_seconds", "Estimated time left, seconds.")
        self.checkpoint_step = gauge("checkpoint_step", "Step of the newest committed checkpoint.")
        self.checkpoint_timestamp = gauge(
            "checkpoint_timestamp_seconds", "Unix time of the newest committed checkpoint, seconds."
        )
        self.membership_changes = counter(
            "membership_changes", "Membership epochs opened: joins, farewells and losses."
        )
        self.lost_workers = counter("silent_workers", "Workers dropped because nothing was heard of them.")
        self.stall_seconds = Histogram(
            "adaptrain_job_stall_seconds",
            "Gap between two steps of a worker across a change of membership, less a median step, seconds.",
            LABELS,
            buckets=_STALLS,
            registry=self.registry,
        ).labels(namespace, name)
        self._validation = Gauge(
            "adaptrain_job_validation", "Newest validation metric.", (*LABELS, "metric"), registry=self.registry
        )
        self._names = (namespace, name)
        self._validations: set[str] = set()
        self.refusals = Refusals(self.registry, LABELS, self._names)

    def validation(self, metric: str, value: float) -> None:
        self._validations.add(metric)
        if len(self._validations) > MOST_VALIDATIONS:
            self._validations.discard(metric)
            return
        self._validation.labels(*self._names, metric).set(value)


class WorkerMetrics:
    """What each worker exports about itself."""

    def __init__(self, namespace: str, name: str) -> None:
        self.registry = CollectorRegistry()

        def histogram(metric: str, text: str) -> Histogram:
            return Histogram(f"adaptrain_worker_{metric}", text, LABELS, buckets=_STEPS, registry=self.registry).labels(
                namespace, name
            )

        self.step_seconds = histogram("step_seconds", "Whole optimizer steps, seconds.")
        self.data_seconds = histogram("data_seconds", "Part of a step that loads and augments samples, seconds.")
        self.communication_seconds = histogram(
            "communication_seconds", "Part of a step that waits for the other workers' gradients, seconds."
        )
        self.samples = Counter(
            "adaptrain_worker_samples", "Samples computed in applied steps.", LABELS, registry=self.registry
        ).labels(namespace, name)
        self.memory_bytes = Gauge(
            "adaptrain_worker_memory_bytes",
            "Memory in use: resident of the process, allocated on its device.",
            (*LABELS, "device"),
            registry=self.registry,
        )
        self._names = (namespace, name)
        self.refusals = Refusals(self.registry, LABELS, self._names)

    def timing(self) -> "StepClock":
        """Time one step: ``with metrics.timing() as clock``."""
        return StepClock(self)

    def memory(self, device: str, used: float) -> None:
        self.memory_bytes.labels(*self._names, device).set(used)


class SearchMetrics:
    """What the coordinator exports about a search."""

    def __init__(self, namespace: str, name: str) -> None:
        self.registry = CollectorRegistry()
        self._names = (namespace, name)
        self.refusals = Refusals(self.registry, SEARCH_LABELS, self._names)

        def gauge(metric: str, text: str) -> Gauge:
            return Gauge(f"adaptrain_search_{metric}", text, SEARCH_LABELS, registry=self.registry).labels(*self._names)

        self.evaluators = gauge("evaluators", "Evaluators that are connected.")
        self.running = gauge("running_trials", "Trials that are under way.")
        self.pareto_size = gauge("pareto_size", "Trials that no other one surpasses in every objective.")
        self._trials = Counter(
            "adaptrain_search_trials", "Trials that ended.", (*SEARCH_LABELS, "state"), registry=self.registry
        )
        self._best = Gauge(
            "adaptrain_search_best", "Metrics of the best trial.", (*SEARCH_LABELS, "metric"), registry=self.registry
        )
        self.ask_seconds = Histogram(
            "adaptrain_search_ask_seconds",
            "Time to choose the next trial, seconds.",
            SEARCH_LABELS,
            buckets=_STEPS,
            registry=self.registry,
        ).labels(*self._names)
        self.trial_seconds = Histogram(
            "adaptrain_search_trial_seconds",
            "Duration of trials, seconds.",
            SEARCH_LABELS,
            buckets=_TRIALS,
            registry=self.registry,
        ).labels(*self._names)

    def ended(self, state: str, trials: int = 1) -> None:
        self._trials.labels(*self._names, state).inc(trials)

    def best(self, metrics: dict[str, float]) -> None:
        for metric, value in metrics.items():
            self._best.labels(*self._names, metric).set(value)


class StepClock:
    """Splits a step's time into data, computation and communication; counts it when it is applied."""

    def __init__(self, metrics: WorkerMetrics) -> None:
        self._metrics = metrics
        self._data = self._communication = 0.0

    def __enter__(self) -> "StepClock":
        self._began = time.perf_counter()
        return self

    def loaded(self) -> None:
        self._data = time.perf_counter() - self._began

    def waited(self, seconds: float) -> None:
        self._communication = seconds

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            self._metrics.step_seconds.observe(time.perf_counter() - self._began)
            self._metrics.data_seconds.observe(self._data)
            self._metrics.communication_seconds.observe(self._communication)
