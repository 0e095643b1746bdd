"""The operator's own Prometheus metrics. A job's name is never a label of them, since the number of jobs has no bound;
``standing`` names a bounded number of jobs that failed or wait."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from adaptrain_operator.standing import Standing

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

RECONCILES = Counter(
    "adaptrain_operator_reconciles_total", "Decisions carried out, by outcome.", ["outcome"], registry=REGISTRY
)
RECONCILE_SECONDS = Histogram(
    "adaptrain_operator_reconcile_seconds",
    "Time to decide for one job and carry it out.",
    registry=REGISTRY,
    buckets=_SECONDS,
)
QUEUE_WAIT = Gauge(
    "adaptrain_operator_queue_wait_seconds", "How long the longest due job has waited for its turn.", registry=REGISTRY
)
TASKS_ENDED = Counter(
    "adaptrain_operator_tasks_ended_total",
    "Background tasks that ended and were begun again, by task.",
    ["task"],
    registry=REGISTRY,
)
DECISIONS_REDUCED = Counter(
    "adaptrain_operator_decisions_reduced_total",
    "Decisions that failed and were made without what pods and coordinators say, by what was left out.",
    ["omitted"],
    registry=REGISTRY,
)
for _left_out in ("progress", "words", "everything"):
    DECISIONS_REDUCED.labels(_left_out)  # from the beginning, so that the first one shows as an increase
EVENTS_DROPPED = Counter(
    "adaptrain_operator_events_dropped_total",
    "Events that were not sent since their object or namespace had too many.",
    registry=REGISTRY,
)
UNREADABLE = Counter(
    "adaptrain_operator_objects_unreadable_total",
    "Objects that the API server sent and that could not be read, by kind.",
    ["kind"],
    registry=REGISTRY,
)
for _kind in ("AdaptiveTrainingJob", "ArchitectureSearch", "Pod", "Node"):
    UNREADABLE.labels(_kind)
QUEUE_DEPTH = Gauge("adaptrain_operator_queue_depth", "Jobs that are due and wait for their turn.", registry=REGISTRY)
REQUESTS = Counter(
    "adaptrain_operator_api_requests_total",
    "Requests to the API server, by verb, kind and status code.",
    ["verb", "kind", "code"],
    registry=REGISTRY,
)
REQUEST_SECONDS = Histogram(
    "adaptrain_operator_api_request_seconds",
    "Time that the API server took to answer, by verb.",
    ["verb"],
    registry=REGISTRY,
    buckets=_SECONDS,
)
PODS_CREATED = Counter("adaptrain_operator_pods_created_total", "Pods made, by role.", ["role"], registry=REGISTRY)
PODS_DELETED = Counter("adaptrain_operator_pods_deleted_total", "Pods deleted, by role.", ["role"], registry=REGISTRY)
PULLS = Counter(
    "adaptrain_operator_progress_pulls_total",
    "Attempts to pull progress from a coordinator, by outcome.",
    ["outcome"],
    registry=REGISTRY,
)
JOBS = Gauge("adaptrain_operator_jobs", "Jobs, by phase.", ["phase"], registry=REGISTRY)
STANDING = Standing()
REGISTRY.register(STANDING)
LEADER = Gauge("adaptrain_operator_leader", "1 while this process holds the Lease.", registry=REGISTRY)
RESYNCS = Counter(
    "adaptrain_operator_resyncs_total", "Listings of everything, by outcome.", ["outcome"], registry=REGISTRY
)
