"""Seeded schedules of faults against jobs on the local cluster; those that were run are not run again.

python -m tests.faults.cluster --seeds 0-29 --results results.jsonl
"""

import argparse
import contextlib
import random
import signal
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.e2e.cluster_api import Object, until
from tests.e2e.cluster_jobs import ClusterJob, Site, name_of, node_of, signal_pod
from tests.e2e.installation import installed
from tests.faults.campaign import go_on
from tests.faults.invariants import check_commits

FAULTS = 8
SIZES = (1, 2, 3)
KINDS = {
    **{"kill": 3, "delete": 3, "leave": 2, "hang": 2, "coordinator": 2, "operator": 1},
    **{"all": 1, "scale": 2, "stop": 1, "cut": 1},
}
"""kill: a worker's processes are killed. delete: its pod is deleted with no grace. leave: with its grace. hang: its
processes are stopped for a while. coordinator, operator: killed. all: every worker's pod is deleted with no grace.
scale: another number of workers is wanted. stop, cut: a node loses its power, or its network, and comes back."""
RECOVERY_SECONDS = 90.0
LONGEST_PAUSE = 3.0
CLEAN_SECONDS = 90.0
"""Pods that ended soon after they were made stay for a minute, so that the operator sees how many there are."""


class Arena:
    """A job, and what is done to it."""

    def __init__(self, site: Site, seed: int) -> None:
        self.site, self.seed = site, seed
        self._chance = random.Random(seed)
        self._wanted = 2
        self._repairs: list[Callable[[], None]] = []
        self.story: list[str] = []
        self.commits: dict[str, float] = {}
        checkpoint = {"volume": {"persistentVolumeClaim": {"claimName": f"faults-{seed}"}}, "everySeconds": 2}
        workers = {"terminationGracePeriodSeconds": 10}
        self.job: ClusterJob = site.job(f"faults-{seed}", workers=workers, checkpoint=checkpoint)

    def run(self) -> None:
        """All faults, and what must hold afterwards."""
        self.recover()
        for kind in self._chance.choices(list(KINDS), list(KINDS.values()), k=FAULTS):
            if self._chance.random() < 0.5:
                self.recover()
            time.sleep(self._chance.uniform(0, LONGEST_PAUSE))
            self.story.append(f"{time.strftime('%H:%M:%S')} {kind}")
            getattr(self, f"_{kind}")()
            self._note_commits()
        self.recover()
        names = {name_of(pod) for pod in (*self.job.workers, self.job.coordinator or {})}
        until("nothing is left of what was lost", lambda: self._pods() == names, CLEAN_SECONDS, self.job.tell)
        assert not self.job.status.get("restarts"), "a fault from outside was counted"
        self._note_commits()
        check_commits(self.commits)
        assert self.job.check_samples() > 0

    def recover(self) -> None:
        """Wait until all that are wanted train together, also once what was broken is repaired."""
        self.job.settled(self._wanted, RECOVERY_SECONDS)
        self.job.advances(RECOVERY_SECONDS, steps=10)
        for repair in self._repairs:
            repair()
        if self._repairs:
            self._repairs.clear()
            self.job.settled(self._wanted, RECOVERY_SECONDS)
            self.job.advances(RECOVERY_SECONDS, steps=10)

    def mend(self) -> None:
        """Leave the cluster as it was."""
        for repair in self._repairs:
            repair()
        self.job.remove()

    def _victim(self) -> Object | None:
        workers = self.job.workers
        return self._chance.choice(workers) if workers else None

    def _kill(self) -> None:
        _signal(self._victim(), signal.SIGKILL)

    def _delete(self) -> None:
        if (victim := self._victim()) is not None:
            self.job.delete(victim)

    def _leave(self) -> None:
        if (victim := self._victim()) is not None:
            self.site.api("DELETE", f"/api/v1/namespaces/{self.site.namespace}/pods/{name_of(victim)}")

    def _hang(self) -> None:
        victim, lasts = self._victim(), self._chance.uniform(0.5, 6)
        _signal(victim, signal.SIGSTOP)
        threading.Timer(lasts, _signal, [victim, signal.SIGCONT]).start()

    def _coordinator(self) -> None:
        _signal(self.job.coordinator, signal.SIGKILL)

    def _operator(self) -> None:
        self.site.kill_operator()

    def _all(self) -> None:
        for pod in self.job.workers:
            self.job.delete(pod)

    def _scale(self) -> None:
        self._wanted = self._chance.choice([size for size in SIZES if size != self._wanted])
        self.job.patch({"workers": {"replicas": self._wanted}})

    def _stop(self) -> None:
        self._lose(self.site.cluster.node_stop, self.site.cluster.node_start)

    def _cut(self) -> None:
        self._lose(self.site.cluster.node_cut, self.site.cluster.node_heal)

    def _lose(self, end: Callable[[str], None], begin: Callable[[str], None]) -> None:
        """The node that the operator is not on: it is not what is tested here."""
        if self._repairs:
            return
        home = node_of(self.site.operator())
        lost = next(node for node in self.site.nodes if node != home)
        end(lost)
        self._repairs.append(lambda: begin(lost))

    def _pods(self) -> set[str]:
        return {name_of(pod) for role in ("worker", "coordinator") for pod in self.job.pods(role)}

    def _note_commits(self) -> None:
        for path in self.job.folder.glob("step-*"):
            with contextlib.suppress(FileNotFoundError):
                self.commits.setdefault(path.name, path.stat().st_ctime)


def _signal(pod: Object | None, what: signal.Signals) -> None:
    """Signal the processes of a pod; it may have none yet, or no more."""
    if pod is not None:
        with contextlib.suppress(AssertionError, ProcessLookupError):
            signal_pod(pod, what)


def attempt(site: Site, seed: int) -> dict[str, Any]:
    """One schedule; what became of it."""
    began = time.monotonic()
    arena = Arena(site, seed)
    try:
        arena.run()
        said: dict[str, Any] = {"ok": True}
    except Exception:
        said = {"ok": False, "why": traceback.format_exc() + "\n" + arena.job.tell()}
    finally:
        arena.mend()
    return {"seed": seed, **said, "story": arena.story, "seconds": round(time.monotonic() - began, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", default="0-29", help="first-last")
    parser.add_argument("--results", type=Path, default=Path("cluster-results.jsonl"), help="a line for each seed")
    arguments = parser.parse_args()
    with installed("adaptrain-faults") as site:
        go_on(arguments.seeds, arguments.results, lambda left: (attempt(site, seed) for seed in left))


if __name__ == "__main__":
    main()
