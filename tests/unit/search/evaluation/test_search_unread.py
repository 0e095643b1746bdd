"""A dimension that the user's function never looks at is told."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from adaptrain.search.evaluation.function_trial import Trial
from adaptrain.search.evaluation.unused_dimensions import MODEL, PATIENCE, UnusedDimensions

CHOICES = {"lr": 0.1, "depth": 3}


def trial(model: dict[str, Any] | None = None, **more: Any) -> Trial:
    return Trial(0, {**CHOICES, **more}, model, 0, lambda step, metrics: None)


@pytest.mark.parametrize(
    ("look", "unread"),
    [
        (lambda c: c["lr"], ["depth"]),
        (lambda c: c.get("depth"), ["lr"]),
        (lambda c: c.pop("lr"), ["depth"]),
        (lambda c: "lr" in c, ["lr", "depth"]),
        (lambda c: len(c), ["lr", "depth"]),
        (lambda c: dict(c), []),
        (lambda c: dict(**c), []),
        (lambda c: {**c}, []),
        (lambda c: [c[name] for name in c], []),
        (lambda c: list(c.values()), []),
        (lambda c: c.copy(), []),
        (lambda c: c | {}, []),
        (json.dumps, []),
    ],
)
def test_what_was_looked_at(look: Callable[[dict[str, Any]], object], unread: list[str]) -> None:
    one = trial()
    look(one.choices)
    assert one.unread(["lr", "depth"]) == unread


def test_an_architecture_is_looked_at_as_a_model_or_by_its_choices() -> None:
    model = {"name": "cell", "args": {}}
    untouched = trial(model, edge=1)
    assert untouched.unread(["lr", "depth"]) == ["lr", "depth", MODEL]
    by_model = trial(model, edge=1)
    assert by_model.model == model
    by_choice = trial(model, edge=1)
    assert by_choice.choices["edge"] == 1
    assert by_model.unread(["lr"]) == by_choice.unread(["lr"]) == ["lr"]
    only_parameters = trial(model, edge=1)
    assert only_parameters.choices["lr"] == 0.1
    assert only_parameters.unread(["lr", "depth"]) == ["depth", MODEL]


def test_it_is_said_once_that_is_sure() -> None:
    unread = UnusedDimensions()
    for _ in range(PATIENCE):
        assert unread.words is None
        unread.hear(["lr", "depth"])
    words = unread.words
    assert words is not None
    assert f"none of {PATIENCE} trials looked at depth, lr" in words
    unread.hear(["lr"])
    assert "looked at lr:" in str(unread.words)
    unread.hear([])
    assert unread.words == ""
