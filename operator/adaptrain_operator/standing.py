"""Which jobs have failed and which wait, by name, for alerts that say where to look.

A job's name is a label nowhere else: here their number is bounded, and the newest are told.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from adaptrain_operator.core.containers import timestamp

MOST = 100
"""Jobs of each kind that are told."""
LABELS = ("job_namespace", "job_name")

Moments = dict[tuple[str, str], float]


class Standing(Collector):
    """Keeps when jobs failed, and since when jobs wait."""

    def __init__(self) -> None:
        self._failed: Moments = {}
        self._waiting: Moments = {}

    def look(self, jobs: Iterable[dict[str, Any]]) -> None:
        """Take the jobs as the API server has them."""
        failed: Moments = {}
        waiting: Moments = {}
        for job in jobs:
            meta, status = job["metadata"], job.get("status") or {}
            key = (str(meta.get("namespace") or ""), str(meta["name"]))
            if status.get("phase") == "Failed":
                failed[key] = _moment(status.get("completionTime"))
            elif status.get("phase") in (None, "Pending") and not (job.get("spec") or {}).get("suspend"):
                waiting[key] = _moment(_since(status) or meta.get("creationTimestamp"))
        self._failed, self._waiting = _newest(failed), _newest(waiting)

    def collect(self) -> Iterator[Metric]:
        for name, moments, help in (
            ("failed", self._failed, f"When a job failed, Unix time; of the {MOST} that failed last."),
            ("waiting", self._waiting, f"Since when a job waits to run, Unix time; of the {MOST} newest."),
        ):
            family = GaugeMetricFamily(f"adaptrain_operator_job_{name}_timestamp_seconds", help, labels=LABELS)
            for key, moment in moments.items():
                family.add_metric(key, moment)
            yield family


def _since(status: dict[str, Any]) -> str | None:
    """Since when its workers are not ready, as its condition tells."""
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodsReady" and condition.get("status") != "True":
            return str(condition.get("lastTransitionTime") or "")
    return None


def _moment(text: str | None) -> float:
    try:
        return timestamp(text) or 0.0
    except ValueError:
        return 0.0


def _newest(moments: Moments) -> Moments:
    return dict(sorted(moments.items(), key=lambda one: one[1], reverse=True)[:MOST])
