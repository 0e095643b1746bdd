"""Whatever happens to a job in whatever order, some things never do."""

from typing import Any

from adaptrain_api.contracts.coordinator_api import EXIT_INVALID
from adaptrain_operator.core import naming
from adaptrain_operator.core.observed import Node, Taint
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.operator_world import INJECTED, World, make_spec, stamp

ACTIONS = [
    "decide",
    "start",
    "start_one",
    "answer",
    "lose",
    "delete",
    "fail",
    "invalid",
    "kill",
    "coordinator",
    "cordon",
    "uncordon",
    "silent",
    "heard",
    "pass_second",
    "pass_minute",
    "scale_1",
    "scale_2",
    "scale_3",
    "scale_4",
    "change",
    "spoil",
    "suspend",
    "resume",
    "unreachable",
    "full",
    "roomy",
]


class Story:
    """A job to which things happen."""

    def __init__(self, injected: tuple[str, ...]) -> None:
        self.world = World(maxRestarts=1000)
        self.world.injected = injected
        self.workers: dict[str, Any] = {"replicas": 2}
        self.suspended = False

    def happen(self, action: str, pick: int) -> None:
        world = self.world
        active = world.active()
        chosen = active[pick % len(active)] if active else None
        coordinator = naming.coordinator_pod("job", world.status.coordinator or 0)
        match action.split("_"):
            case ["decide"]:
                self.decide()
            case ["start"]:
                world.start()
            case ["start", "one"] if chosen:
                world.start(chosen)
            case ["answer"]:
                world.answer()
            case ["lose"] if chosen:
                del world.pods[chosen]
            case ["delete"] if chosen:
                meta = world.pods[chosen]["metadata"]
                meta |= {"deletionTimestamp": stamp(world.now + 30), "deletionGracePeriodSeconds": 30}
            case ["fail"] if chosen:
                self.fail(chosen)
            case ["invalid"] if chosen:
                # Only what has not trained: what trains has a manifest that can be run.
                template = world.pods[chosen]["metadata"]["annotations"][naming.TEMPLATE_HASH]
                if world.status.trained_template not in (None, template):
                    world.end(chosen, EXIT_INVALID)
            case ["kill"] if chosen:
                world.end(chosen, 137)
            case ["coordinator"] if coordinator in world.pods:
                del world.pods[coordinator]
            case ["cordon"]:
                name = "abc"[pick % 3]
                gone = Taint("karpenter.sh/disrupted", "NoSchedule")
                node = Node(name, cordoned=True) if pick % 2 else Node(name, taints=(gone,))
                world.nodes = {**(world.nodes or {}), name: node}
            case ["uncordon"]:
                world.nodes = {name: Node(name) for name in "abc"}
            case ["silent"] if chosen:
                world.silent[world.pods[chosen]["metadata"]["uid"]] = world.now
            case ["heard"]:
                world.silent = {}
            case ["pass", "second"]:
                world.now += 1
            case ["pass", "minute"]:
                world.now += 60
            case ["scale", number]:
                self.workers |= {"replicas": int(number)}
                self.spec()
            case ["change"]:
                self.workers |= {"labels": {"jobs.adaptrain.io/n": str(pick)}}
                self.spec()
            case ["spoil"]:
                """A template none of whose workers ever starts well."""
                self.workers |= {"labels": {"jobs.adaptrain.io/bad": str(pick)}}
                self.spec()
                for _ in range(pick):
                    self.decide()
                    self.spoil()
                    world.now += 10
                    world.answer()
            case ["suspend" | "resume"]:
                self.suspended = action == "suspend"
                self.spec()
            case ["unreachable"]:
                world.lost_since = world.now - 9 if world.answered is not None else None
            case ["full" | "roomy"]:
                world.room = 2 if action == "full" else 100

    def spoil(self) -> None:
        for name in self.world.active():
            pod = self.world.pods[name]
            if "jobs.adaptrain.io/bad" in pod["metadata"]["labels"] and pod["status"]["phase"] == "Pending":
                self.fail(name)

    def fail(self, name: str) -> None:
        """With another error each time: the same on every start ends the job."""
        self.world.end(name, message="x" * (1 + len(self.world.ended)))

    def spec(self) -> None:
        self.world.spec = make_spec(workers=self.workers, suspend=self.suspended, maxRestarts=1000)
        self.world.generation += 1

    def decide(self) -> None:
        world = self.world
        before = set(world.active())
        trained = {name for name in before if world.pods[name]["metadata"]["uid"] in world.members}
        plan = world.step()
        after = set(world.active())
        wanted = 0 if self.suspended else world.spec.workers.wanted
        made = after - before
        assert not made or len(after) <= wanted + 1, "never more than one extra"
        assert not (made and self.suspended)
        lost_by_us = [deletion.name for deletion in plan.delete if deletion.grace is None and deletion.name in trained]
        if lost_by_us and not self.suspended:
            assert len(after) >= world.spec.workers.min, "never below min by our own hand"
        running = [pod for pod in world.pods.values() if pod["metadata"]["labels"][naming.ROLE] == naming.COORDINATOR]
        numbers = [int(pod["metadata"]["name"].rsplit("-", 1)[1]) for pod in running]
        assert all(number <= (world.status.coordinator or 0) for number in numbers)
        alive = [pod for pod in running if pod["metadata"]["name"] not in world.ended]
        assert sum(pod["status"]["phase"] in ("Pending", "Running") for pod in alive) <= 2
        assert plan.status.next_worker is None or all(
            int(name.rsplit("-", 1)[1]) < plan.status.next_worker for name in after
        )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 5)), max_size=60),
    st.sets(st.sampled_from(INJECTED)).map(tuple),
)
@example([("start", 0), ("change", 0), ("scale_1", 0)], ())
@example([("start", 0), ("answer", 0), ("scale_3", 0), ("change", 0), ("invalid", 2)], ())
def test_whatever_happens(actions: list[tuple[str, int]], injected: tuple[str, ...]) -> None:
    story = Story(injected)
    story.decide()
    for action, pick in actions:
        story.happen(action, pick)
        story.decide()
    # Left alone, with room and a coordinator that answers, it becomes what was wanted, and then nothing more.
    world = story.world
    world.silent, world.room, world.lost_since = {}, 100, None
    world.nodes = {name: Node(name) for name in "abc"}
    for _ in range(6):
        world.now += 120
        world.answer()
        world.settle()
    wanted = 0 if story.suspended else world.spec.workers.wanted
    assert len(world.active()) == wanted
    held = [name for name in world.ended & world.pods.keys() if world.pods[name]["status"]["phase"] == "Running"]
    assert held == [], "another container keeps none of them"
    assert world.status.phase == ("Suspended" if story.suspended else "Running")
    plan = world.decide()
    assert (plan.create, plan.delete, plan.events) == ([], [], [])
    assert plan.status == world.status
