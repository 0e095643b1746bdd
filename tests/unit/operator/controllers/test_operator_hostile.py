"""What a coordinator says, and what pods say: nothing of it stops a suspension, a deadline or a removal."""

import asyncio
import json
import math
import sys
from typing import Any

import pytest
from adaptrain_api.bounds import LONGEST_NAME, LONGEST_TEXT, MOST_READINGS
from adaptrain_api.contracts.coordinator_api import Progress, TrialOrder
from adaptrain_api.training.job import dump
from adaptrain_operator import tasks
from adaptrain_operator.core.job.essentials import Essentials, decide_anyhow, decide_essentials
from adaptrain_operator.core.job.reconcile import decide
from adaptrain_operator.core.observed import Job, Observed
from adaptrain_operator.core.plan import Plan
from adaptrain_operator.core.stored_status import read_status
from adaptrain_operator.kube.kinds import JOB
from adaptrain_operator.main import DEEPEST
from adaptrain_operator.runtime.budget import Bucket, Buckets
from adaptrain_operator.runtime.cache import Cache
from adaptrain_operator.runtime.coordinator_poller import LARGEST, CoordinatorPoller
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.support.operator_world import World
from tests.support.protocol import Guarded
from tests.unit.operator.runtime.test_operator_parts import Answers, answers, unused_port  # noqa: F401 - fixtures

Object = dict[str, Any]

REFUSED: list[Object] = [
    {"recentChanges": [{"time": 1e300, "epoch": 1, "message": "x"}]},
    {"recentChanges": [{"time": -1e12, "epoch": 1, "message": "x"}]},
    {"silent": [{"id": "a", "name": "w", "since": 1e300}]},
    {"step": 2**70},
    {"step": -1},
    {"members": [{"id": "x" * 300, "name": "w", "step": 1, "joined": 1}]},
    {"members": [{"id": str(n), "name": "w", "step": 1, "joined": 1} for n in range(3000)]},
    {"joining": ["x" * 300]},
    {"result": {"outcome": "completed", "step": 1, "epoch": 1, "model": "m" * 3_000_000}},
    {"search": {"end": {"outcome": "failed", "reason": "no reason\n", "message": ""}}},
    {"search": {"orders": [{"number": 1, "given": {"a": [0] * 100_000}}]}},
    {"search": {"orders": [{"number": 1, "given": {"a": 2**64}}]}},
    {"search": {"orders": [{"number": 10**12, "given": {}}]}},
]


@pytest.mark.parametrize("said", REFUSED, ids=lambda said: str(said)[:40])
def test_what_no_coordinator_can_say_is_refused(said: Object) -> None:
    with pytest.raises(ValidationError):
        Progress.model_validate({"number": 1, **said})


def test_what_is_only_odd_is_cut() -> None:
    metrics = {f"train/{n}": 1.0 for n in range(600)} | {"val/loss": 0.5, "x" * 1000: 1.0, "val/odd": math.inf}
    progress = Progress.model_validate(
        {
            "number": 1,
            "metrics": metrics,
            "loss": math.nan,
            "etaSeconds": math.inf,
            "goodput": -math.inf,
            "result": {"outcome": "failed", "step": 1, "epoch": 1, "message": "m" * 3_000_000},
            "recentChanges": [{"time": 1, "epoch": 1, "message": "x", "count": n, "stall": 1e99} for n in range(500)],
        }
    )
    assert (progress.loss, progress.eta_seconds, progress.goodput) == (None, None, None)
    assert len(progress.metrics) <= MOST_READINGS
    assert progress.metrics["val/loss"] == 0.5
    assert all(len(name) <= LONGEST_NAME and math.isfinite(value) for name, value in progress.metrics.items())
    assert progress.result is not None
    assert len(progress.result.message) == LONGEST_TEXT
    assert [change.count for change in progress.recent_changes] == list(range(400, 500))
    assert progress.recent_changes[0].stall is None


def test_an_order_of_an_honest_size_is_taken() -> None:
    given: Object = {"architecture": list(range(500)), "why": {"by": "random"}}
    assert TrialOrder(number=1, given=given, parameters={"model.args.width": 8}).given == given


odd = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([1e300, -1e300, 2**53, 253_402_300_799.0, "completed", "failed", "running", "done", 1, 0.5]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from([field.alias or name for name, field in Progress.model_fields.items()])
results = st.fixed_dictionaries(
    {"outcome": st.sampled_from(["completed", "failed", "left"])},
    optional=dict.fromkeys(("step", "epoch", "message", "metrics", "model"), odd),
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(names, odd, max_size=6), st.none() | results)
def test_whatever_is_believed_can_be_written(said: Object, result: Object | None) -> None:
    world = World()
    world.settle()
    said |= {"number": world.status.coordinator} | ({} if result is None else {"result": result})
    try:
        world.progress = Progress.model_validate_json(json.dumps(said))
    except ValidationError:
        return
    for suspend in (False, True):
        world.spec = world.spec.model_copy(update={"suspend": suspend})
        plan = world.decide()
        text = json.dumps(dump(plan.status), allow_nan=False)
        assert len(text) < 100_000
        read_status(json.loads(text))


def _broken(needs: str) -> Any:
    """A decision that fails as long as it sees what a tenant's processes say."""

    def fails(job: Job, seen: Observed, now: float) -> Plan:
        if needs == "progress" and seen.contact.progress is not None:
            raise OverflowError
        if needs == "words" and any(pod.exit is not None and pod.exit.message for pod in seen.workers):
            raise RecursionError
        if needs == "everything":
            raise KeyError
        return decide(job, seen, now)

    return fails


@pytest.mark.parametrize("needs", ["progress", "words", "everything"])
def test_suspension_deadline_and_removal_are_carried_out_whatever_a_decision_stumbles_over(needs: str) -> None:
    world = World(activeDeadlineSeconds=1000, ttlSecondsAfterFinished=100)
    world.settle()
    world.end(world.active()[0], 1)
    world.spec = world.spec.model_copy(update={"suspend": True})
    plan, left_out = decide_anyhow(_broken(needs), world.job, world.observed(), world.now)
    assert left_out[-1] == needs
    assert {deletion.name for deletion in plan.delete} >= set(world.active())
    world.spec = world.spec.model_copy(update={"suspend": False})
    world.now += 1001
    plan, _ = decide_anyhow(_broken(needs), world.job, world.observed(), world.now)
    assert plan.status.phase == "Failed"
    world.carry_out(plan)
    assert world.condition("Failed")[1] == "DeadlineExceeded"
    world.now += 101
    assert decide_anyhow(_broken(needs), world.job, world.observed(), world.now)[0].remove_job


def test_what_only_fails_by_progress_is_decided_without_it() -> None:
    world = World()
    world.settle()
    del world.pods[world.active()[0]]
    plan, _ = decide_anyhow(_broken("progress"), world.job, world.observed(), world.now)
    assert len(plan.create) == 1, "a lost worker's successor is made all the same"


def test_a_spec_that_cannot_be_read_is_suspended_and_removed_all_the_same() -> None:
    wanted = Essentials.read({"suspend": True, "activeDeadlineSeconds": "soon", "workers": 5})
    assert wanted == Essentials(suspend=True, active_deadline_seconds=None, ttl_seconds_after_finished=None)
    world = World()
    world.settle()
    plan = decide_essentials(wanted, world.status, 1, world.observed(), world.now, ("InvalidSpec", "no"))
    assert {deletion.name for deletion in plan.delete} == set(world.pods)


def test_a_status_of_another_release_loses_only_what_cannot_be_read() -> None:
    status = read_status({"phase": "Exploded", "nextWorker": 7, "conditions": "none", "later": {"a": 1}})
    assert (status.phase, status.next_worker, status.conditions) == (None, 7, [])


class Hostile(Answers):
    """A coordinator that answers in ways of its own."""

    async def serve(self, address: str, answer: Any) -> None:
        guarded = Guarded("secret")

        async def proved(request: web.Request) -> web.Response:
            return await guarded.answer(request, lambda: answer(request))

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", proved)
        self.runners[address] = web.AppRunner(app, access_log=None)
        await self.runners[address].setup()
        await web.TCPSite(self.runners[address], address, self.port).start()


KEY = ("ns", "one")


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch, unused_port: int) -> Hostile:  # noqa: F811 - a fixture
    return Hostile(monkeypatch, unused_port)


def _asked(hostile: Hostile, answer: Any, seconds: float = 0.5) -> CoordinatorPoller:
    async def check() -> CoordinatorPoller:
        await hostile.serve("127.0.0.1", answer)
        hostile.puller.ask(KEY, 1, "127.0.0.1", "a", "secret")
        await asyncio.sleep(seconds)
        contact = hostile.puller.contact(KEY)
        task = hostile.puller._targets[KEY].task
        assert task is not None
        assert not task.done()
        await hostile.puller.close()
        await hostile.close("127.0.0.1")
        assert contact.answered is None
        return hostile.puller

    return asyncio.run(check())


def test_no_redirect_is_followed(hostile: Hostile) -> None:
    seen: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.path)
        if request.path == "/progress":
            return web.Response(status=307, headers={"Location": "/elsewhere"}, body=b"")
        return web.json_response({"number": 1})

    _asked(hostile, answer)
    assert set(seen) == {"/progress"}


def test_an_answer_is_bounded_and_not_decompressed(hostile: Hostile) -> None:
    async def large(request: web.Request) -> web.Response:
        return web.Response(text=json.dumps({"number": 1, "more": "x" * LARGEST}))

    _asked(hostile, large)


def test_a_compressed_answer_is_not_believed(hostile: Hostile) -> None:
    async def packed(request: web.Request) -> web.Response:
        response = web.json_response({"number": 1})
        response.enable_compression(web.ContentCoding.gzip)
        return response

    _asked(hostile, packed)


def test_a_namespace_whose_coordinators_keep_their_answers_costs_others_nothing(hostile: Hostile) -> None:
    answered: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        if request.headers["Host"].startswith("127.0.0.1"):
            await asyncio.sleep(30)
        answered.append("victim")
        return web.json_response({"number": 1})

    async def check() -> None:
        await hostile.serve("127.0.0.1", answer)
        await hostile.serve("127.0.0.2", answer)
        for number in range(100):
            hostile.puller.ask(("evil", f"job-{number}"), 1, "127.0.0.1", "a", "secret")
        await asyncio.sleep(0.2)
        hostile.puller.ask(("team", "victim"), 1, "127.0.0.2", "a", "secret")
        await hostile.until(lambda: len(answered) >= 3, 20)
        await hostile.puller.close()
        for address in ("127.0.0.1", "127.0.0.2"):
            runner = hostile.runners.pop(address)
            runner._shutdown_timeout = 0.1
            await runner.cleanup()

    asyncio.run(check())


def test_numbers_alone_ask_for_no_decision(hostile: Hostile) -> None:
    said: list[Object] = [{"number": 1, "step": 1}, {"number": 1, "step": 2, "loss": 0.5}]
    decided: list[str] = []
    hostile.puller = CoordinatorPoller(
        lambda _: decided.append("decide"), lambda _: None, lambda _: decided.append("write")
    )

    async def answer(request: web.Request) -> web.Response:
        return web.json_response(said.pop(0) if said else {"number": 1, "step": 2, "loss": 0.5, "state": "running"})

    async def check() -> None:
        await hostile.serve("127.0.0.1", answer)
        hostile.puller.ask(KEY, 1, "127.0.0.1", "a", "secret")
        await hostile.until(lambda: len(decided) >= 3)
        await hostile.puller.close()
        await hostile.close("127.0.0.1")

    asyncio.run(check())
    assert decided == ["decide", "write", "decide"]


def test_a_task_that_ends_is_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "FIRST_PAUSE", 0.01)
    begun: list[int] = []

    often = asyncio.Event()

    async def work() -> None:
        begun.append(1)
        if len(begun) == 3:
            often.set()
        if len(begun) == 1:
            raise KeyError("odd")

    async def check() -> None:
        task = asyncio.create_task(tasks.forever("one", "test", work))
        await asyncio.wait_for(often.wait(), 20)
        task.cancel()

    asyncio.run(check())


def test_a_bucket_gives_what_it_holds_and_then_what_it_gets() -> None:
    bucket = Bucket(rate=0.001, burst=3)
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
    assert bucket.wait() > 900
    assert bucket.owe(1) > 900
    buckets: Buckets[int] = Buckets(rate=0.001, burst=1, most=2)
    assert [buckets.of(key).take() for key in (1, 1, 2, 3, 1)] == [True, False, True, True, True]


@pytest.mark.parametrize(("opened", "closed"), [('{"a":', "}"), ("[", "]")])
def test_an_object_of_ten_thousand_levels_stops_no_listing(opened: str, closed: str) -> None:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(DEEPEST)
    try:
        deep = json.loads(opened * 9990 + "1" + closed * 9990)
        job = {"metadata": {"name": "job", "namespace": "ns", "uid": "u", "resourceVersion": "1"}, "spec": {"x": deep}}
        cache = Cache()
        assert cache.put(JOB, job) == {("ns", "job")}
        world = World()
        world.settle()
        assert world.spec.model is not None
        model = world.spec.model.model_copy(update={"args": {"deep": deep}})
        world.spec = world.spec.model_copy(update={"model": model, "suspend": True})
        plan, _ = decide_anyhow(decide, world.job, world.observed(), world.now)
        assert {deletion.name for deletion in plan.delete} >= set(world.active())
    finally:
        sys.setrecursionlimit(limit)
