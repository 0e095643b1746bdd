"""Who tries what, and how a search ends."""

import random
from typing import Any

import numpy as np
import pytest
from adaptrain.search.algorithms.base import Proposal
from adaptrain.search.algorithms.registry import make_algorithm, make_pruner
from adaptrain.search.scheduler import MOST_ATTEMPTS, RETURN_SECONDS, Assignment, TrialScheduler
from adaptrain.search.spaces.registry import make_space
from adaptrain.search.study.leaderboard import TOP
from adaptrain.search.study.study import TrialRecord
from adaptrain_api.contracts.coordinator_api import TrialWeights
from adaptrain_api.search.job import ArchitectureSearchSpec


def spec(**given: Any) -> ArchitectureSearchSpec:
    base: dict[str, Any] = {
        "space": {"parameters": [{"name": f"c{n}", "values": [0, 1, 2]} for n in range(4)]},
        "objectives": [{"metric": "score", "goal": "maximize"}],
        "algorithm": {"name": "random"},
        "budget": {"trials": 20},
        "trial": {"callable": "m:f"},
    }
    return ArchitectureSearchSpec.model_validate(base | given)


class Desk(TrialScheduler):
    """With its algorithm, as a coordinator has them."""

    def __init__(
        self,
        wanted: ArchitectureSearchSpec,
        history: list[TrialRecord],
        known: list[TrialRecord],
        returning: bool = False,
    ) -> None:
        space = make_space(wanted.space)
        self.algorithm = make_algorithm(wanted, space)
        super().__init__(wanted, self.algorithm, make_pruner(wanted.pruning), history, known, returning)

    def ask(self, now: float) -> tuple[int, Proposal] | None:
        """The next trial's number and what the algorithm proposes for it."""
        number = self.next(now)
        return None if number is None else (number, self.algorithm.ask(number, self.tried))

    def take(self, evaluator: str, now: float) -> Assignment | None:
        """What an evaluator that asks gets if nothing happens meanwhile."""
        given = self.again(evaluator, now)
        if given is not None or (asked := self.ask(now)) is None:
            return given
        return self.give(evaluator, *asked, now)


def dispatch(
    history: list[TrialRecord] | None = None,
    known: list[TrialRecord] | None = None,
    returning: bool = False,
    **given: Any,
) -> Desk:
    return Desk(spec(**given), history or [], known or [], returning)


def run(d: Desk, evaluator: str = "a", now: float = 0.0, **metrics: float) -> TrialRecord:
    given = d.take(evaluator, now)
    assert given is not None
    found = {"score": float(sum(given.architecture)), **metrics}
    ended = d.tell(evaluator, given.number, "complete", found, "", now + 1)
    assert ended is not None
    return ended


@pytest.mark.parametrize("seed", range(20))
def test_every_trial_ends_once_whoever_is_lost(seed: int) -> None:
    """Any order of asking, telling, coming back and being lost; and coordinators that know no more than the study."""
    chance = random.Random(seed)
    d, history = dispatch(seed=seed), list[TrialRecord]()
    has: dict[str, Any] = {}
    asking: tuple[str, tuple[int, Proposal]] | None = None
    """Who waits for the algorithm, and what it will be: one at a time."""
    for now in range(10000):
        who = chance.choice("abc")
        match chance.choice(["work", "work", "work", "lost", "coordinator"]):
            case "work" if who in has:
                one = has.pop(who)
                ended = d.tell(who, one.number, "complete", {"score": 1.0}, "", now)
                assert ended is not None
                assert d.tell(who, one.number, "complete", {"score": 2.0}, "", now) is None, "told once more"
                history.append(ended)
            case "work" if asking is not None:
                (waiting, asked), asking = asking, None
                given = d.give(waiting or None, *asked, now)
                if given is not None and waiting:
                    has[waiting] = given
            case "work" if (given := d.again(who, now)) is not None:
                has[who] = given
            case "work" if (asked := d.ask(now)) is not None:
                asking = who, asked
            case "lost" if who in has:
                assert not d.lost(who, now, orderly=True)
                del has[who]
            case "lost" if asking is not None and asking[0] == who:
                asking = "", asking[1]
            case "coordinator":
                d, asking = dispatch(history, seed=seed), None
                for one, given in list(has.items()):
                    if not d.back(one, given.number, given.architecture, given.why, now):
                        del has[one]
        if d.verdict(now) is not None:
            break
    assert sorted(one.number for one in history) == list(range(20))
    assert len({one.architecture for one in history}) == 20


@pytest.mark.parametrize("budget", [{"seconds": 30}, {"evaluatorSeconds": 60}, {"trials": 12}])
@pytest.mark.parametrize("seed", range(20))
def test_who_takes_over_waits_for_what_was_given_out(seed: int, budget: dict[str, int]) -> None:
    """Coordinators end at any time, also when the budget is spent: evaluators come back one after the other, within
    the grace that the first one begins. None of them is lost, so every trial counts, and no other takes it."""
    chance = random.Random(seed)
    wants: dict[str, Any] = {"seed": seed, "budget": budget, "parallelism": {"max": 3}}
    d, history, given = dispatch(**wants), list[TrialRecord](), set[int]()
    has: dict[str, Any] = {}
    calls = dict.fromkeys("abc", 0.0)
    """When each one reaches the coordinator."""
    here: set[str] = set()
    for tick in range(4000):
        now = tick / 2
        if (end := d.verdict(now)) is not None:
            break
        wanted = d.evaluators(now)
        assert wanted is None or len(d.busy) <= wanted <= d.spec.parallelism.max, "who has a trial is wanted"
        for who in sorted(calls.keys() - here):
            if calls[who] <= now:
                here.add(who)
                d.greet(now)
                if (one := has.get(who)) is not None:
                    assert d.back(who, one.number, one.architecture, one.why, now), "another one has it"
        if tick == 8 or chance.random() < 0.05:
            d, here = dispatch(history, returning=True, **wants), set()
            first = now + chance.choice([0.5, 1.0, 8.0])
            calls = {who: first + chance.choice([0, 0.5, 2.5]) for who in calls}
            calls[chance.choice("abc")] = first
        elif here:
            who = chance.choice(sorted(here))
            if who not in has and (one := d.take(who, now)) is not None:
                has[who] = one
                given.add(one.number)
            elif who in has and chance.random() < 0.3:
                ended = d.tell(who, has.pop(who).number, "complete", {"score": 1.0}, "", now)
                assert ended is not None
                history.append(ended)
    assert end is not None
    assert end.outcome == "complete"
    assert not has, "nobody tries what would not count any more"
    assert sorted(one.number for one in history) == sorted(given)


def test_as_many_evaluators_are_wanted_as_find_something_to_try() -> None:
    d = dispatch(budget={"trials": 5}, parallelism={"max": 3})
    assert d.evaluators(0) == 3
    run(d)
    run(d)
    has = [d.take(who, 0) for who in "abc"]
    assert all(has)
    assert d.evaluators(0) == 3
    d.lost("a", 1)
    assert d.evaluators(1) == 3, "what was lost is tried again"
    assert has[1] is not None
    d.tell("b", has[1].number, "failed", {}, "", 1)
    assert (d.evaluators(1), d.busy) == (2, {"c"})
    assert dispatch(budget={"trials": 5}, returning=True).evaluators(0) is None, "who has a trial isn't known yet"
    timed = dispatch(budget={"seconds": 10}, parallelism={"max": 3})
    run(timed)
    assert timed.take("a", 1) is not None
    assert (timed.evaluators(9), timed.evaluators(10)) == (3, 1)
    small = dispatch(space={"parameters": [{"name": "a", "values": [1, 2]}]}, parallelism={"max": 3})
    assert small.take("a", 0) is not None
    assert small.take("b", 0) is not None
    assert small.take("c", 0) is None
    assert small.evaluators(0) == 2, "the space is used up"


def test_nothing_is_given_out_before_the_first_can_have_come_back() -> None:
    history = [run(dispatch())]
    d = dispatch(history, returning=True, budget={"seconds": 1})
    assert d.verdict(1000) is None, "nobody has reached it yet"
    d.greet(1000)
    d.greet(1002)
    assert d.verdict(1000 + RETURN_SECONDS - 0.1) is None
    assert d.take("a", 1000) is None
    assert d.verdict(1000 + RETURN_SECONDS) is not None


def test_what_was_lost_is_given_out_first() -> None:
    d = dispatch()
    lost, other = d.take("a", 0), d.take("b", 0)
    assert lost is not None
    assert other is not None
    d.lost("a", 1)
    again = d.take("c", 2)
    assert again is not None
    assert (again.number, again.architecture) == (lost.number, lost.architecture)
    assert d.tell("a", lost.number, "complete", {"score": 1}, "", 3) is None, "it is another's now"


def test_a_trial_that_kills_its_evaluators_fails() -> None:
    d = dispatch()
    for n in range(MOST_ATTEMPTS):
        assert d.take(f"e{n}", n) is not None
        failed = d.lost(f"e{n}", n)
    assert [one.state for one in failed] == ["failed"]
    assert "5 evaluators were lost with it" in failed[0].message


def test_a_used_up_space_ends_the_search() -> None:
    d = dispatch(space={"parameters": [{"name": "a", "values": [1, 2, 3]}]})
    for _ in range(3):
        run(d)
    assert d.take("a", 0) is None
    verdict = d.verdict(0)
    assert verdict is not None
    assert verdict.message == "3 trials ended: every architecture of the space was tried"


def test_budgets() -> None:
    seconds = dispatch(budget={"seconds": 10})
    run(seconds, now=0)
    assert seconds.verdict(9) is None
    assert seconds.verdict(10) is not None
    spent = dispatch(budget={"evaluatorSeconds": 3})
    for now in range(3):
        run(spent, now=now)
    assert spent.take("a", 3) is None
    assert spent.verdict(3) is not None
    few = dispatch(budget={"trials": 2})
    assert few.take("a", 0) is not None
    assert few.take("b", 0) is not None
    assert few.take("c", 0) is None, "as many as the budget has are under way"
    assert few.verdict(0) is None


def test_constraints_that_nothing_meets() -> None:
    d = dispatch(budget={"trials": 3}, constraints=[{"metric": "size", "atMost": 10}])
    for _ in range(3):
        run(d, size=11.0)
    verdict = d.verdict(0)
    assert verdict is not None
    assert verdict.reason == "ConstraintsNotMet"
    assert "none of 3 trials meets all constraints (size ≤ 10): relax them, or raise the budget" in verdict.message


def test_the_best_meets_the_constraints() -> None:
    d = dispatch(constraints=[{"metric": "size", "atMost": 10}])
    for n in range(12):
        run(d, size=float(9 + n % 3), score=float(n))
    assert d.standings.top[0].metrics["score"] == 10.0
    assert all(one.metrics["size"] <= 10 for one in d.standings.top)


def test_the_front_is_what_nothing_surpasses() -> None:
    goals = [{"metric": "score", "goal": "maximize"}, {"metric": "size", "goal": "minimize"}]
    d = dispatch(objectives=goals)
    chance = random.Random(0)
    for _ in range(20):
        run(d, score=float(chance.randrange(6)), size=float(chance.randrange(6)))
    points = [(one.metrics["score"], one.metrics["size"]) for one in d.ended.values()]
    best = {p for p in points if not any(q != p and q[0] >= p[0] and q[1] <= p[1] for q in points)}
    assert {(one.metrics["score"], one.metrics["size"]) for one in d.standings.front} == best
    assert len(d.standings.front) == sum(p in best for p in points)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_who_is_among_the_best_has_its_weights_and_few_others_do(seed: int, several: bool) -> None:
    """Evaluators offer weights and tell later; others tell meanwhile, and coordinators are replaced."""
    chance = random.Random(seed)
    goals = [{"metric": "score", "goal": "maximize"}, {"metric": "size", "goal": "minimize"}][: 1 + several]
    wants: dict[str, Any] = {
        "seed": seed,
        "space": {"parameters": [{"name": f"c{n}", "values": [0, 1, 2]} for n in range(5)]},
        "objectives": goals,
        "budget": {"trials": 150},
        "constraints": [{"metric": "size", "atMost": 18}],
    }
    d, history, written = dispatch(**wants), list[TrialRecord](), 0
    has: dict[str, Any] = {}
    offered: dict[str, tuple[dict[str, float], TrialWeights | None]] = {}
    while d.verdict(0) is None:
        who = chance.choice("abcd")
        if chance.random() < 0.03:
            d = dispatch(history, **wants)
            assert all(d.back(one, given.number, given.architecture, given.why, 0) for one, given in has.items())
        elif who not in has:
            if (one := d.take(who, 0)) is not None:
                has[who] = one
        elif who not in offered:
            number, found = has[who].number, {"score": float(chance.randrange(40)), "size": float(chance.randrange(20))}
            wanted = d.wants_weights(who, number, found)
            written += wanted
            path = f"trials/{number}-{number:016x}.safetensors"
            offered[who] = found, TrialWeights(path=path, sha256=f"{number:064x}") if wanted else None
        else:
            metrics, weights = offered.pop(who)
            ended = d.tell(who, has.pop(who).number, "complete", metrics, "", 0, weights)
            assert ended is not None
            history.append(ended)
    assert all(one.weights is not None for one in d.standings.top), "one of them is the winner"
    kept = {
        one.number
        for one in (*d.standings.top, *d.standings.front)
        if one.weights is not None and one.weights.path in d.standings.kept
    }
    assert kept >= {one.number for one in d.standings.top}
    if several:
        points = [(one.metrics["score"], one.metrics["size"]) for one in d.standings.front if one.number in kept]
        assert set(points) == {(one.metrics["score"], one.metrics["size"]) for one in d.standings.front}
        assert len(d.standings.kept) <= len(d.standings.top) + len(set(points)), "one file for each point is enough"
    assert written < 75, "most are not worth a file"


def test_what_can_not_be_the_winner_leaves_no_weights() -> None:
    d = dispatch(constraints=[{"metric": "size", "atMost": 10}])
    one = d.take("a", 0)
    assert one is not None
    assert d.wants_weights("a", one.number, {"score": 1.0, "size": 10.0})
    assert not d.wants_weights("a", one.number, {"score": 1.0, "size": 11.0}), "it breaks a constraint"
    assert not d.wants_weights("a", one.number, {"score": 1.0}), "it will have failed"
    assert not d.wants_weights("b", one.number, {"score": 1.0, "size": 10.0}), "it is another's"


def test_another_search_teaches_and_is_not_repeated() -> None:
    first = dispatch()
    known = [run(first) for _ in range(20)]
    second = dispatch(known=known)
    mine = [run(second) for _ in range(20)]
    assert not {one.architecture for one in mine} & {one.architecture for one in known}
    assert second.verdict(0) is not None


def test_under_noise_the_best_is_what_the_algorithm_thinks_it_is() -> None:
    """One lucky look at a bad one is above all looks at the good one, whose best one stands for it."""
    rng = np.random.default_rng(0)
    algorithm = {"name": "auto", "args": {"noisy": True}}
    d = dispatch(algorithm=algorithm, budget={"trials": 60})
    lucky: tuple[int, ...] | None = None
    for now in range(60):
        given = d.take("a", now)
        assert given is not None
        worth = float(sum(given.architecture))
        noise = float(rng.normal())
        if worth == 4 and lucky is None:
            lucky, noise = given.architecture, 7.0
        weights = TrialWeights(
            path=f"trials/{given.number}-{given.number:016x}.safetensors", sha256=f"{given.number:064x}"
        )
        d.tell("a", given.number, "complete", {"score": worth + noise}, "", now, weights)
    assert d.standings.top[0].architecture == (2, 2, 2, 2)
    looks = [one for one in d.ended.values() if one.architecture == d.standings.top[0].architecture]
    assert len(looks) > 1
    assert d.standings.top[0].metrics["score"] == max(one.metrics["score"] for one in looks)
    assert len({one.architecture for one in d.standings.top}) == len(d.standings.top) == TOP
    assert max(d.ended.values(), key=lambda one: one.metrics["score"]).architecture == lucky
    assert {one.weights.path for one in d.standings.top if one.weights is not None} <= d.standings.kept
    again = dispatch(list(d.ended.values()), algorithm=algorithm, budget={"trials": 60})
    assert [one.number for one in again.standings.top] == [one.number for one in d.standings.top]
