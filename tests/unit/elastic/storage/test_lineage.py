"""Whose a folder of checkpoints is: it outlives the object, and only moves forward."""

import pytest
from adaptrain.elastic.storage.lineage import MOST_CLAIMS, Claim, Held, check, claim, claims

from tests.unit.conftest import Place


def test_a_newer_coordinator_takes_over_and_an_older_one_never_again(place: Place) -> None:
    first, second = claim(place.storage, "a", 1), claim(place.storage, "a", 2)
    assert (first.term, second.term) == (1, 2)
    assert claim(place.storage, "a", 2) == second, "another worker of the same lineage"
    check(place.storage, second)
    for what in (lambda: check(place.storage, first), lambda: claim(place.storage, "a", 1)):
        with pytest.raises(Held, match="coordinator 2 of the job with uid a holds the folder"):
            what()


def test_a_job_that_is_made_again_counts_from_one_and_takes_over(place: Place) -> None:
    old = claim(place.storage, "a", 7)
    again = claim(place.storage, "b", 1)
    assert again > old
    for number in (7, 8):  # what is left of the deleted job, and a coordinator that it was given meanwhile
        with pytest.raises(Held, match="coordinator 1 of the job with uid b"):
            claim(place.storage, "a", number)


def test_a_claim_that_was_stopped_for_long_does_not_take_the_folder_back(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = place.storage.claim

    def late(name: str) -> None:
        monkeypatch.undo()
        for number in (2, 3):
            claim(place.storage, "a", number)
        at_once(name)

    monkeypatch.setattr(place.storage, "claim", late)
    with pytest.raises(Held, match="coordinator 3 of the job with uid a"):
        claim(place.storage, "a", 1)
    assert claims(place.storage)[-1].number == 3


def test_checkpoints_without_a_claim_are_older_than_whoever_claims(place: Place) -> None:
    name = f"step-{5:010d}.{(9 << 32) + 1}"
    folder = place.storage.begin(name)
    place.storage.commit(folder, name, b'{"files": {}}', lambda: None)
    assert claim(place.storage, "a", 1).term == 10


def test_a_folder_that_was_emptied_is_claimed_again(place: Place) -> None:
    mine = claim(place.storage, "a", 1)
    place.storage.forget_claim(mine.name)
    check(place.storage, mine)
    assert claims(place.storage) == [mine]


def test_claims_do_not_grow_without_bound(place: Place) -> None:
    for number in range(1, MOST_CLAIMS + 20):
        place.storage.claim(Claim(number, number, "a").name)
    newest = claim(place.storage, "b", 1)
    assert len(claims(place.storage)) <= MOST_CLAIMS + 1
    check(place.storage, newest)


def test_what_is_no_claim_is_left_alone(place: Place) -> None:
    place.storage.claim("README")
    assert claim(place.storage, "a", 1).term == 1
