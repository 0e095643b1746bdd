"""Every frame between a worker and its coordinator: its keys, their types, and the bounds of each number, text, list.

Frames are checked once, before anything looks into them. Keys that are not known are left out: a newer release may say
more. Where an honest worker passes on what a user's code made (a loss that is no number, a long note), the value is
left out or cut; all else that is out of bounds is no frame of ours.
"""

from typing import Annotated, Any, get_args

from adaptrain_api import bounds
from adaptrain_api.bounds import LARGEST_INTEGER, LONGEST_DURATION, LONGEST_NAME, MOST_PHASES, FewReadings
from adaptrain_api.contracts.coordinator_api import PhaseProgress
from adaptrain_api.text import printable
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, create_model

from adaptrain.rpc.framing import BadFrame, Frame

NOTE_LENGTH = 300
"""Characters that are kept of what a worker tells to people."""
LARGEST = 1e300
PEERS = 1000
"""Most members of a group."""
LARGEST_VALUE = 1 << 20
"""Bytes of what a member sets for others. gloo's is its addresses for all of them, some 100 bytes each."""


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not abs(value) <= LARGEST else value


def _cut(value: object) -> object:
    return value[:NOTE_LENGTH] if isinstance(value, str) else value


def _unicode(text: str) -> str:
    """Printable text that every reader of JSON takes: without halves of surrogate pairs."""
    return printable(text).encode(errors="replace").decode()


Count = Annotated[int, Field(strict=True, ge=0, le=LARGEST_INTEGER)]
Epoch = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Version = Annotated[int, Field(strict=True, ge=-(2**31), le=LARGEST_INTEGER)]
Port = Annotated[int, Field(strict=True, ge=0, lt=2**16)]
Seconds = Annotated[float, Field(strict=True, ge=0, le=LONGEST_DURATION)]
Measured = Annotated[Annotated[float, Field(strict=True, ge=-LARGEST, le=LARGEST)] | None, BeforeValidator(_finite)]
Id = Annotated[str, Field(strict=True, min_length=1, max_length=64), AfterValidator(_unicode)]
Name = Annotated[str, Field(strict=True, min_length=1, max_length=LONGEST_NAME), AfterValidator(_unicode)]
Words = Annotated[bounds.Words, Field(strict=True), AfterValidator(_unicode)]
Note = Annotated[str, BeforeValidator(_cut), Field(strict=True), AfterValidator(_unicode)]
Flag = Annotated[bool, Field(strict=True)]
Ids = Annotated[list[Id], Field(max_length=PEERS)]
Readings = FewReadings
Nonce = Annotated[str, Field(strict=True, min_length=16, max_length=128)]

Length = Annotated[int, Field(strict=True, ge=0, le=LARGEST_VALUE)]

NoneType = type(None)


class Dialect:
    """The frames that one end says: for each value of ``key`` the other keys and their types. A key whose type allows
    None may be missing."""

    def __init__(self, key: str, kinds: dict[str, dict[str, Any]]) -> None:
        self._key = key
        self._models: dict[str, type[BaseModel]] = {kind: _model(kind, keys) for kind, keys in kinds.items()}

    def check(self, frame: Frame) -> Frame:
        """The frame, with the keys that are known.

        Raises:
            BadFrame: it is none of these.
        """
        kind = frame.get(self._key)
        model = self._models.get(kind) if isinstance(kind, str) else None
        if model is None:
            raise BadFrame(f"no frame is called {str(kind)[:40]!r}")
        try:
            return {self._key: kind, **model.model_validate(frame).model_dump(exclude_unset=True)}
        except (ValidationError, RecursionError) as error:
            first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": "too deep"}
            raise BadFrame(f"{kind}.{'.'.join(map(str, first['loc']))[:80]}: {first['msg'][:200]}") from error


def _model(kind: str, keys: dict[str, Any]) -> type[BaseModel]:
    fields: dict[str, Any] = {key: (type, None if _optional(type) else ...) for key, type in keys.items()}
    made: type[BaseModel] = create_model(kind, **fields)
    return made


def _optional(type: Any) -> bool:
    """Whether a type allows None, also below its annotations."""
    parts = get_args(type)
    return NoneType in parts or any(_optional(part) for part in parts[:1])


REPORT: dict[str, Any] = {
    "step": Count | None,
    "data_epoch": Count | None,
    "loss": Measured,
    "learning_rate": Measured,
    "batch_size": Count | None,
    "samples_per_second": Measured,
    "step_seconds": Measured,
    "metrics": Readings | None,
    "best": Readings | None,
    "checkpoint_step": Count | None,
    "checkpoint_time": Measured,
    "checkpoint_error": Words | None,
    "eta_seconds": Measured,
    "goodput": Measured,
    "skipped_steps": Count | None,
    "phases": Annotated[list[PhaseProgress], Field(max_length=MOST_PHASES)] | None,
}
"""What the group's first member reports of the training, as fields of ``Progress``."""

FROM_WORKER = Dialect(
    "is",
    {
        "hello": {
            "id": Id,
            "name": Name,
            "host": Name,
            "port": Port,
            "group": Epoch,
            "peers": Ids,
            "version": Version,
            "trained": Flag | None,
            "preparing": Flag | None,
        },
        "beating": {
            "doing": Id,
            "age": Seconds,
            "bound": Seconds | None,
            "version": Version,
            "step": Count,
            "trained": Flag | None,
            "preparing": Flag | None,
        },
        "ready": {"epoch": Epoch, "port": Port | None},
        "broken": {"epoch": Epoch, "why": Note},
        "ended": {"epoch": Epoch, "failed": Flag},
        "leaving": {},
        "note": {"message": Note},
        "stall": {"epoch": Epoch, "seconds": Seconds},
        "report": REPORT,
        "done": {"result": dict[str, Any], **REPORT},
    },
)

FROM_MEMBER = Dialect("is", {"hello": {}, "set": {"key": Name, "bytes": Length}, "get": {"key": Name}})
"""What a member says to the rendezvous of the group's first member."""

ANSWERS = {"refuse": {"why": Words}}

FROM_RENDEZVOUS = Dialect("do", {**ANSWERS, "welcome": {}, "value": {"bytes": Length}})

FROM_COORDINATOR = Dialect(
    "do",
    {
        **ANSWERS,
        "welcome": {"number": Epoch, "preparing": Flag | None},
        "beat": {"workers": Count | None},
        "plan": {"epoch": Epoch},
        "leave": {"epoch": Epoch},
        "adopt": {"epoch": Epoch, "group": Epoch},
        "form": {"epoch": Epoch, "rank": Count, "peers": Ids, "host": Name, "port": Port},
        "go": {"save": Flag},
        "finish": {},
        "fail": {},
    },
)
