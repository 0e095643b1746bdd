"""The operator's decisions under everything at once, simulated: clocks that are minutes or an hour apart, hostile words
of coordinators, deleted children, forged jobs and pods, requests that fail, and operators that are killed.

python -m tests.faults.operator --seeds 0-1999
"""

import argparse
import json
import random
import resource
import sys
import time
from dataclasses import dataclass, field, replace
from typing import Any

from adaptrain_api.contracts.coordinator_api import Progress, SearchProgress
from adaptrain_api.training.job import dump
from adaptrain_operator.core import naming
from adaptrain_operator.core.job.essentials import decide_anyhow
from adaptrain_operator.core.job.reconcile import decide
from adaptrain_operator.core.observed import Lease, Observed
from adaptrain_operator.core.plan import Plan
from adaptrain_operator.core.stored_status import read_status
from adaptrain_operator.runtime.node_leases import seen_again
from pydantic import ValidationError

from tests.support.operator_world import Object, World, make_spec, stamp
from tests.support.trial_job_world import ORDER, Cluster

SKEWS = (0.0, 2.0, 5.0, 15.0, 60.0, -2.0, -5.0, -15.0, -60.0)
STEPS = (0.0, 60.0, -60.0, 3600.0, -3600.0)
ROUNDS = 60
SLOWEST = 0.005
"""Seconds that 99 of 100 decisions may take at most."""
LARGEST_STATUS = 100_000
GROWTH = 60.0
"""MB that 2,000 seeds may add to the memory of the first hundred."""

EVENTS = (
    *("start", "answer", "answer", "second", "seconds", "minute", "lose", "delete", "fail", "kill", "crash"),
    *("coordinator", "children", "scale", "suspend", "resume", "change", "say", "say", "dead", "alive"),
)
ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**53, 2**70, 0.5, 1e300, -1e300, float("inf"), float("nan"), "", "x" * 5000, "running"),
    *("done", [], {}, [1], ["x"], {"a": 1}, [{}], {"outcome": "completed", "step": 1, "epoch": 1}),
    [{"id": "x", "name": "y", "since": 1e300}],
    [{"time": 1e300, "epoch": 1, "message": "x"}],
    [{"time": 5, "epoch": 1, "message": "m" * 9000, "count": 3, "stall": 1e300}],
    {"outcome": "failed", "step": 2**70, "epoch": 1},
    {"end": {"outcome": "failed", "reason": "\n", "message": ""}},
)


HOSTILE: tuple[Object, ...] = (
    {"recentChanges": [{"time": 1e300, "epoch": 1, "message": "x"}]},
    {"recentChanges": [{"time": -1e12, "epoch": 1, "message": "x"}]},
    {"recentChanges": [{"time": 5, "epoch": 1, "message": "m" * 9000, "count": n} for n in range(300)]},
    {"etaSeconds": float("inf")},
    {"etaSeconds": 1e300},
    {"goodput": 1e300},
    {"loss": float("nan"), "step": 2**60},
    {"step": 2**70},
    {"metrics": {"x" * 100_000: 1.0, **{str(n): 1e308 for n in range(2000)}}},
    {"checkpointStep": 2**80, "checkpointError": "e" * 100_000},
    {"skippedSteps": 10**30},
    {"members": [{"id": str(n), "name": "x" * 200, "step": 1, "joined": 1} for n in range(1500)]},
)


class Broken(AssertionError):
    """An invariant does not hold."""


@dataclass
class Figures:
    """What all seeds cost."""

    seconds: list[float] = field(default_factory=list)
    decisions: int = 0


class SubprocessSearcher(World):
    """A world in which no two clocks agree. ``now`` is the true time, which nobody knows."""

    def __init__(self, rng: random.Random, figures: Figures, **spec: Any) -> None:
        self.rng, self.figures = rng, figures
        self.offset = rng.choice(SKEWS)
        self.api_offset = rng.choice(SKEWS)
        self.node_offsets = {name: rng.choice(SKEWS) for name in "abc"}
        self.suspects: frozenset[str] = frozenset()
        self.dead: dict[str, float] = {}
        """Nodes whose kubelets renew no Lease, and since when."""
        self.joins: dict[str, float] = {}
        """When a worker joins, by uid."""
        self.quick = False
        """Workers join at once."""
        super().__init__(**spec)

    def ours(self) -> float:
        return self.now + self.offset

    def api(self) -> float:
        return self.now + self.api_offset

    def of(self, node: str | None) -> float:
        return self.now + self.node_offsets.get(node or "", 0.0)

    def end(self, name: str, code: int = 1, reason: str = "Error", message: str = "boom", **meta: Any) -> None:
        begun = self.pods[name]["status"].get("containerStatuses", [{}])[0].get("state", {}).get("running", {})
        super().end(name, code, reason, message, **meta)
        state = self.pods[name]["status"]["containerStatuses"][0]["state"]["terminated"]
        state["startedAt"] = begun.get("startedAt", state["finishedAt"])

    def observed(self) -> Observed:
        seen = super().observed()

        def at(true: float | None) -> float | None:
            return None if true is None else true + self.offset

        contact = seen.contact
        times = {"asked": at(contact.asked), "answered": at(contact.answered), "lost_since": at(contact.lost_since)}
        return replace(seen, contact=replace(contact, **times))  # type: ignore[arg-type]

    def decide(self) -> Plan:
        self.look_at_leases()
        job, seen = self.job, self.observed()
        began = time.thread_time()  # whatever else the machine does
        plan, left_out = decide_anyhow(decide, job, seen, self.ours())
        self.figures.seconds.append(time.thread_time() - began)
        self.figures.decisions += 1
        if left_out:
            raise Broken(f"a decision fails: see the log; it was made without {left_out}")
        self.suspects = plan.suspects
        return plan

    def look_at_leases(self) -> None:
        """As runtime/node_leases.py does, of suspected nodes only."""
        for node in self.suspects:
            renewed = min(self.now, self.dead.get(node, self.now)) // 10 * 10 + self.node_offsets.get(node, 0.0)
            self.leases[node] = seen_again(self.leases.get(node), renewed, self.ours())

    def restart(self) -> None:
        """Another operator takes over, on a machine whose clock is another one."""
        self.offset += self.rng.choice(STEPS)
        self.sighted, self.leases, self.suspects = {}, dict[str, Lease](), frozenset()
        self.progress = self.asked = self.answered = self.lost_since = None

    def answer(self, **more: Any) -> None:
        """Workers join some time after they have started."""
        super().answer(**more)
        if self.progress is None or self.quick:
            return
        for uid in self.members:
            self.joins.setdefault(uid, self.now + self.rng.choice([0.0, 5.0, 20.0, 40.0]))
        self.members = {uid for uid in self.members if self.joins[uid] <= self.now}
        members = [one for one in self.progress.members if one.id in self.members]
        self.progress = self.progress.model_copy(update={"members": members})

    def hear(self, said: Object) -> None:
        """A coordinator's answer, as the operator takes it in."""
        try:
            text = json.dumps({"number": self.status.coordinator or 0, "state": "running", **said})
            self.progress = Progress.model_validate_json(text)
            self.answered, self.lost_since = self.now, None
        except ValidationError:
            if self.answered is not None and self.lost_since is None:
                self.lost_since = self.now

    def carry_out(self, plan: Plan) -> None:
        """As much of it as requests succeed: then it is decided anew."""
        text = json.dumps(dump(plan.status), allow_nan=False)
        if len(text) > LARGEST_STATUS:
            raise Broken(f"a status of {len(text)} bytes")
        if read_status(json.loads(text)) != plan.status:
            raise Broken("a status that does not come back as it was written")
        fate = self.rng.random()
        if fate < 0.05:
            return  # the status could not be written: nothing is done
        if fate < 0.15:
            # A request fails, and what would come after it is left.
            left = self.rng.randint(0, len(plan.delete) + len(plan.apply) + len(plan.create))
            for part in (plan.delete, plan.apply, plan.create):
                kept = min(left, len(part))
                del part[kept:]
                left -= kept
        super().carry_out(plan)
        if fate > 0.97:
            self.restart()


class Story:
    """A job to which things happen, and a search."""

    def __init__(self, seed: int, figures: Figures) -> None:
        self.seed, self.rng = seed, random.Random(seed)
        self.hostile = seed % 2 == 1
        self.limit = self.rng.choice([None, None, 300])
        self.workers: Object = {"replicas": 2}
        self.suspended = False
        self.failures = 0
        self.world = SubprocessSearcher(self.rng, figures, **self.spec())
        self.events: list[str] = []

    def spec(self) -> Object:
        spec: Object = {"maxRestarts": 1000, "workers": {"min": 1, "max": 4, **self.workers}, "suspend": self.suspended}
        return spec | ({} if self.limit is None else {"activeDeadlineSeconds": self.limit})

    def run(self) -> None:
        try:
            for _ in range(ROUNDS):
                self.happen()
                self.step()
            self.calm_down()
        except AssertionError as problem:
            raise Broken(f"seed {self.seed}: {problem}; after {', '.join(self.events[-12:])}") from problem

    def happen(self) -> None:
        world, rng = self.world, self.rng
        active = world.active()
        chosen = rng.choice(active) if active else None
        event = rng.choice(EVENTS)
        self.events.append(event)
        match event:
            case "start":
                world.start()
            case "answer":
                world.answer()
            case "second" | "seconds" | "minute":
                for _ in range({"second": 1, "seconds": 8, "minute": 30}[event]):
                    world.now += 1 if event != "minute" else 2
                    self.step()
            case "lose" if chosen:
                del world.pods[chosen]
            case "delete" if chosen:
                meta = {"deletionTimestamp": stamp(world.api() + 30), "deletionGracePeriodSeconds": 30}
                world.pods[chosen]["metadata"] |= meta
            case "fail" | "kill" if chosen:
                self.failures += event == "fail" and world.pods[chosen]["status"]["phase"] == "Running"
                if world.pods[chosen]["status"]["phase"] == "Running":
                    world.end(chosen, 1 if event == "fail" else 137)
            case "crash":
                world.restart()
            case "coordinator":
                world.pods.pop(naming.coordinator_pod("job", world.status.coordinator or 0), None)
            case "children":
                for child in rng.sample(sorted(world.children), len(world.children) // 2):
                    del world.children[child]
            case "scale":
                self.workers |= {"replicas": rng.randint(1, 4)}
                self.change()
            case "suspend" | "resume":
                self.suspended = event == "suspend"
                self.change()
            case "change":
                self.workers |= {"labels": {"jobs.adaptrain.io/n": str(rng.randint(0, 3))}}
                self.change()
            case "say" if self.hostile and rng.random() < 0.5:
                world.hear(rng.choice(HOSTILE))
            case "say" if self.hostile:
                names = list(Progress.model_fields.values())
                said = {str(rng.choice(names).alias): rng.choice(ODD) for _ in range(rng.randint(1, 3))}
                said.pop("number", None)
                world.hear(said)
            case "dead":
                world.dead.setdefault(rng.choice("abc"), world.now)
            case "alive":
                world.dead = {}

    def change(self) -> None:
        self.world.spec = make_spec(**self.spec())
        self.world.generation += 1

    def step(self) -> None:
        """Decide once, carry it out, and see what must never be."""
        world = self.world
        status, before = world.status, set(world.active())
        ended = status.phase in ("Succeeded", "Failed")
        made = len(world.made)
        plan = world.step()
        after = set(world.active())
        wanted = 0 if self.suspended or ended else world.spec.workers.wanted
        new = after - before
        assert not new or len(after) <= wanted + 1, f"{len(after)} workers of {wanted}"
        assert not (new and self.suspended), "workers of a suspended job"
        assert len(world.made) - made <= 6, "more pods at once than a job has"
        for deletion in plan.delete:
            node = (world.pods.get(deletion.name) or {"spec": {}})["spec"].get("nodeName")
            assert deletion.grace != 0 or not node or not self.healthy(deletion.name), "a healthy worker is forced out"
        silent = [event for event in plan.events if event.reason == "WorkerSilent"]
        if not self.hostile and not world.dead:
            assert not silent, f"{silent[0].message}, and all nodes are well"
        if not self.hostile:
            assert (world.status.restarts or 0) <= self.failures, "a failure counts twice"
        for name in [name for name, pod in world.pods.items() if "deletionTimestamp" in pod["metadata"]]:
            if self.rng.random() < 0.5:
                del world.pods[name]
        if ended:
            assert plan.status.phase == status.phase, "an end is an end"

    def healthy(self, name: str) -> bool:
        pod = self.world.pods[name]
        member = pod["metadata"]["uid"] in self.world.members
        return not self.hostile and not self.world.dead and member and name in self.world.active()

    def calm_down(self) -> None:
        """Left alone, with coordinators that answer, it becomes what was wanted, and then nothing more."""
        world = self.world
        world.dead, world.rng, world.extra, world.quick = {}, random.Random(), {}, True
        world.rng.random = lambda: 0.5  # type: ignore[method-assign]
        for _ in range(8):
            world.now += 130
            world.answer()
            world.settle()
        if world.status.phase in ("Succeeded", "Failed"):
            assert self.limit is not None or self.hostile, f"it ended by itself: {world.condition('Failed')}"
            return
        wanted = 0 if self.suspended else world.spec.workers.wanted
        # A rollout that was stopped, since its first worker failed, keeps the one worker more that it may have.
        stopped = world.condition("Rescaling")[:2] == ("True", "RollingUpdate")
        assert wanted <= len(world.active()) <= wanted + stopped, f"{world.active()} of {wanted}"
        assert world.status.phase == ("Suspended" if self.suspended else "Running"), world.status.phase
        plan = world.decide()
        assert (plan.create, plan.delete) == ([], []), "it is never content"
        if not self.suspended and not self.hostile and self.limit is None and not stopped:
            self.must_count()
        self.must_end()

    def must_count(self) -> None:
        """Failures count once each, whatever their nodes' clocks say, and are replaced after 1, 2, 4, … seconds."""
        world = self.world
        world.now += 700
        world.answer()
        world.step()
        world.step()
        assert not world.status.restarts, "training makes up for failures"
        for count in range(1, 4):
            world.now += 30
            world.answer()
            world.step()
            world.end(world.active()[0], 1)
            waited = 0
            while len(world.active()) < world.spec.workers.wanted:
                world.step()
                world.now += 1
                waited += 1
                assert waited < 2**count + 4, f"failure {count} is replaced after more than {waited} s"
            assert world.status.restarts == count, f"{world.status.restarts} of {count} failures are counted"
            world.start()

    def must_end(self) -> None:
        """Whatever its coordinator says: a suspended job loses its workers, one past its deadline fails."""
        world = self.world
        self.suspended = True
        self.change()
        for odd in ODD:
            world.hear({"recentChanges": odd, "search": odd, "result": odd if isinstance(odd, int) else None})
            world.now += 1
            world.step()
        for name in [name for name, pod in world.pods.items() if "deletionTimestamp" in pod["metadata"]]:
            del world.pods[name]
        assert not world.active(), "a suspended job keeps workers"


def forge(seed: int) -> None:
    """A search whose namespace is full of jobs that pretend to be its: none of them ever counts."""
    rng = random.Random(seed)
    cluster = Cluster()
    cluster.settle()
    numbers = rng.sample(range(40), 6)
    for round in range(12):
        orders = [ORDER.model_copy(update={"number": n}) for n in numbers[: rng.randint(0, 6)]]
        cluster.progress = SearchProgress(orders=orders)
        label = rng.choice(["abc", "7", "-1", "", "9" * 300, str(rng.choice(numbers))])
        name = rng.choice(["friendly", "digits-pool", "digits-winner", f"digits-trial-{rng.choice(numbers)}"])
        if name not in cluster.jobs or rng.random() < 0.2:
            owner = {"uid": rng.choice(["uid", "other"]), "kind": "Any", "controller": rng.random() < 0.5}
            cluster.jobs[name] = {
                "metadata": {
                    "name": name,
                    "uid": f"forged {round}",
                    "labels": {naming.SEARCH_NAME: "digits", naming.TRIAL: label},
                    "annotations": {naming.GIVEN: rng.choice(["{}", "[", "[" * 5000, '{"architecture":[1]}'])},
                    "ownerReferences": [owner] if rng.random() < 0.8 else [],
                },
                "spec": {},
                "status": {"phase": rng.choice(["Succeeded", "Odd"]), "metrics": {"best/val/accuracy": 0.99999}},
            }
        cluster.spec["suspend"] = rng.random() < 0.2
        plan = cluster.plan()
        for report in plan.reports.trials if plan.reports is not None else []:
            if (report.job or "").startswith("forged"):
                raise Broken(f"seed {seed}: a forged trial is reported: {report}")
        stranger = {one.name for one in plan.status.jobs if one.uid.startswith("forged")}
        if stranger:
            raise Broken(f"seed {seed}: forged jobs are on record: {stranger}")
        for one in plan.delete:
            owners = cluster.jobs[one.name]["metadata"].get("ownerReferences") or []
            if not any(owner["uid"] == "uid" for owner in owners):
                raise Broken(f"seed {seed}: a job of somebody else's is deleted: {one.name}")
        for job in plan.apply:
            there = cluster.jobs.get(job["metadata"]["name"])
            if there is not None and there["metadata"]["uid"].startswith("forged"):
                raise Broken(f"seed {seed}: a job of somebody else's is written: {job['metadata']['name']}")
        cluster.carry_out(plan, rng.choice([1000, 1000, rng.randint(0, 3)]))


def run(seed: int, figures: Figures) -> None:
    """
    Raises:
        Broken: with the seed and what happened before.
    """
    Story(seed, figures).run()
    forge(seed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0-1999", help="first-last")
    first, last = map(int, parser.parse_args().seeds.split("-"))
    figures, broken, base = Figures(), list[str](), 0.0
    for count, seed in enumerate(range(first, last + 1)):
        try:
            run(seed, figures)
        except Broken as problem:
            broken.append(str(problem))
            print(problem, flush=True)
        if count == 100:
            base = _megabytes()
    figures.seconds.sort()
    slow = figures.seconds[int(len(figures.seconds) * 0.99)]
    growth = _megabytes() - base if base else 0.0
    print(
        f"{last - first + 1} seeds, {figures.decisions} decisions: {len(broken)} seeds break an invariant;"
        f" 99 of 100 decisions take at most {slow * 1000:.2f} ms;"
        f" memory grew by {growth:.0f} MB after the first hundred seeds"
    )
    return 0 if not broken and slow <= SLOWEST and growth <= GROWTH else 1


def _megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main())
