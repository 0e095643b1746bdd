"""Every frame between an evaluator and its search's coordinator (see ``adaptrain.rpc.messages``)."""

from typing import Annotated, Any, Literal

from pydantic import Field, create_model

from adaptrain.rpc.messages import ANSWERS, Count, Dialect, Flag, Id, Name, Readings, Words

Anything = dict[str, Any]
Listed = Annotated[list[Any], Field(max_length=10_000)]
Dimensions = Annotated[list[Name], Field(max_length=1000)]

Has = create_model("Has", number=(Count, ...), architecture=(Listed, ...), why=(Anything, ...))
"""The trial that an evaluator has when it says hello."""

FROM_EVALUATOR = Dialect(
    "is",
    {
        "hello": {"id": Id, "name": Name, "trial": Has | None},
        "beat": {},
        "ask": {},
        "leaving": {},
        "report": {"trial": Count, "step": Count, "metrics": Readings},
        "offer": {"trial": Count, "metrics": Readings},
        "tell": {
            "trial": Count,
            "state": Literal["complete", "pruned", "failed"],
            "metrics": Readings,
            "message": Words | None,
            "unread": Dimensions | None,
            "weights": Anything | None,
            "ranking": Listed | None,
        },
    },
)

FROM_COORDINATOR = Dialect(
    "do",
    {
        **ANSWERS,
        "welcome": {"number": Count, "go": Flag},
        "beat": {},
        "wait": {},
        "told": {"trial": Count},
        "stop": {"trial": Count},
        "weights": {"trial": Count, "wanted": Flag},
        "try": {
            "trial": Count,
            "architecture": Listed,
            "why": Anything,
            "supernet": Flag | None,
            "choices": Any | None,
            "model": Anything | None,
            "parameters": Anything | None,
        },
    },
)
