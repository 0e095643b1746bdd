"""The study: every trial that ended, kept by Optuna, so that its dashboard and tools open it as it is.

A trial is one write when it has ended, and those that end together are one write: a journal's append (with fsync) takes
longer than all else that the coordinator does. What runs is not written: evaluators know it, and whatever nobody comes
back with is given out again.
"""

import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import optuna
from adaptrain_api.contracts.coordinator_api import TrialWeights
from adaptrain_api.search.job import ArchitectureSearchSpec
from adaptrain_api.training.job import dump
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from adaptrain.errors import InvalidJob
from adaptrain.search.algorithms.oneshot import SUPERNET, Ranking
from adaptrain.search.spaces.base import Architecture, Dimension, Space

optuna.logging.set_verbosity(optuna.logging.WARNING)
log = logging.getLogger(__name__)

State = Literal["complete", "pruned", "failed"]
STATES: dict[State, TrialState] = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
UNVALUED = TrialState.PRUNED
"""What a trial without values is for Optuna, which takes none of another state that ended well."""
JOURNAL = "study.journal"


@dataclass(frozen=True)
class TrialRecord:
    """A trial that ended."""

    number: int
    """Of the trial, as it was given out; never used twice."""
    architecture: Architecture
    state: State
    metrics: dict[str, float] = field(default_factory=dict)
    """All that it reported, finite."""
    steps: dict[int, float] = field(default_factory=dict)
    """The first objective on its way."""
    why: dict[str, Any] = field(default_factory=dict)
    """Why it was asked for."""
    seconds: float = 0.0
    message: str = ""
    """Why it failed."""
    ended: float = 0.0
    """When, Unix time."""
    weights: TrialWeights | None = None
    """What it left; the file may have been removed, if the trial was not among the best."""
    ranking: Ranking | None = None
    """Of architectures, if it was the network that all share; it has no values then."""


@dataclass(frozen=True)
class Store:
    """Where studies are."""

    storage: BaseStorage
    together: Callable[[], AbstractContextManager[None]] = nullcontext
    """Inside it, several writes become one, where the storage can."""


class Superseded(Exception):
    """A newer coordinator has taken over the study."""


class Study:
    """One coordinator's hold on a study. Opening it ends the hold of every one before it.

    Args:
        open_: opens the store, such as ``open_store``; again after an error.
        name: of the study.
        owner: the search's uid: a study belongs to one search.
        number: of the coordinator.

    Raises:
        InvalidJob: the name is taken by another search.
        Superseded: a newer coordinator has it.
    """

    def __init__(
        self, open_: Callable[[], Store], name: str, owner: str, number: int, spec: ArchitectureSearchSpec, space: Space
    ) -> None:
        self._open, self._number, self._spec, self._space = open_, number, spec, space
        self._store: Store | None = open_()
        storage = self._store.storage
        self._distributions = {one.name: _distribution(one) for one in space.dimensions}
        directions = [StudyDirection[objective.goal.upper()] for objective in spec.objectives]
        known = {study.study_name: study._study_id for study in storage.get_all_studies()}
        if name in known:
            self._id = known[name]
            holder = storage.get_study_user_attrs(self._id).get("owner")
            if holder != owner:
                raise InvalidJob(
                    f"storage: it holds a study {name!r} of another search already (of uid {holder}): give this search"
                    " another name, or delete that study; to go on from its trials, name it in warmStart"
                )
        else:
            self._id = storage.create_new_study(directions, name)
            storage.set_study_user_attr(self._id, "owner", owner)
            storage.set_study_user_attr(self._id, "space", fingerprint(spec))
        self._check(storage)
        storage.set_study_user_attr(self._id, "coordinator", number)
        self._recorded: set[int] = set()

    def history(self) -> list[TrialRecord]:
        """All trials, in the order in which they ended."""
        assert self._store is not None
        found = list(_read(self._store.storage, self._id, self._space))
        self._recorded = {one.number for one in found}
        return found

    def record(self, trials: Sequence[TrialRecord]) -> None:
        """Write down trials that ended, all at once; on return they are safe.

        Raises:
            Superseded: a newer coordinator has taken over: nothing was written.
            OSError: they may or may not be written: try again.
        """
        new = [one for one in trials if one.number not in self._recorded]
        try:
            self._store = store = self._store or self._open()
            self._check(store.storage)
            with store.together():
                for one in new:
                    store.storage.create_new_trial(self._id, self._frozen(one))
        except (OSError, SQLAlchemyError, StorageInternalError) as error:
            self._store = None  # it may believe what was not written
            raise OSError(str(error).strip().splitlines()[0]) from error
        self._recorded |= {one.number for one in new}

    def known(self, search: str) -> list[TrialRecord]:
        """The trials of another search's study in the same storage, to start from.

        Raises:
            InvalidJob: there is none, or it is of another space or of other objectives.
        """
        assert self._store is not None
        storage = self._store.storage
        studies = {study.study_name: study._study_id for study in storage.get_all_studies()}
        if search not in studies:
            names = ", ".join(sorted(studies)) or "none"
            raise InvalidJob(f"warmStart.search: the storage has no study {search!r}; it has {names}")
        if storage.get_study_user_attrs(studies[search]).get("space") != fingerprint(self._spec):
            raise InvalidJob(
                f"warmStart.search: the study {search!r} is of another space or of other objectives, so that its trials"
                " say nothing here: remove warmStart, or make space and objectives equal"
            )
        return [one for one in _read(storage, studies[search], self._space) if one.architecture != SUPERNET]

    def _check(self, storage: BaseStorage) -> None:
        holder = storage.get_study_user_attrs(self._id).get("coordinator", 0)
        if holder > self._number:
            raise Superseded(f"coordinator {holder} has taken over the study from coordinator {self._number}")

    def _violations(self, one: TrialRecord) -> dict[str, float]:
        names = [constraint.metric for constraint in self._spec.constraints]
        return dict(zip(names, violations(self._spec, one.metrics), strict=True))

    def _frozen(self, one: TrialRecord) -> FrozenTrial:
        described = self._space.describe(one.architecture) if one.architecture != SUPERNET else {}
        distributions = {name: each for name, each in self._distributions.items() if name in described}
        complete = one.state == "complete" and one.ranking is None
        at = datetime.fromtimestamp(one.ended, UTC)
        frozen = create_trial(
            state=STATES[one.state] if one.ranking is None else UNVALUED,
            values=[one.metrics[objective.metric] for objective in self._spec.objectives] if complete else None,
            params={name: described[name] for name in distributions},
            distributions=distributions,
            intermediate_values=one.steps,
            user_attrs={
                "trial": one.number,
                "architecture": one.architecture,
                "metrics": one.metrics,
                "seconds": one.seconds,
                "why": one.why,
                **({"message": one.message} if one.message else {}),
                **({"weights": one.weights.model_dump()} if one.weights is not None else {}),
                **({"ranking": one.ranking} if one.ranking is not None else {}),
            },
            constraints=self._violations(one) if complete and self._spec.constraints else None,
        )
        frozen.datetime_start = datetime.fromtimestamp(one.ended - one.seconds, UTC)
        frozen.datetime_complete = at
        return frozen


def _read(storage: BaseStorage, study: int, space: Space) -> Iterator[TrialRecord]:
    """A study's trials; of several of one number, which two coordinators may have written, the first."""
    states = {state: name for name, state in STATES.items()}
    seen = set()
    for trial in storage.get_all_trials(study, deepcopy=False):
        said = trial.user_attrs
        if "trial" not in said or said["trial"] in seen or trial.state not in states:
            continue  # somebody else's, made with Optuna's own tools
        seen.add(said["trial"])
        yield TrialRecord(
            number=said["trial"],
            architecture=as_architecture(said["architecture"]),
            state=states[trial.state] if "ranking" not in said else "complete",
            metrics=said.get("metrics", {}),
            steps=dict(trial.intermediate_values),
            why=said.get("why", {}),
            seconds=said.get("seconds", 0.0),
            message=said.get("message", ""),
            ended=trial.datetime_complete.timestamp() if trial.datetime_complete else 0.0,
            weights=TrialWeights.model_validate(said["weights"]) if "weights" in said else None,
            ranking=as_ranking(said["ranking"]) if "ranking" in said else None,
        )


def as_architecture(read: Any) -> Architecture:
    """An architecture that was read from JSON, which has no tuples."""
    found: Architecture = tuple(as_architecture(one) if isinstance(one, list | tuple) else one for one in read)
    return found


def as_ranking(read: Any) -> Ranking:
    """A ranking that was read from JSON."""
    return [(as_architecture(architecture), float(score)) for architecture, score in read]


def violations(spec: ArchitectureSearchSpec, metrics: dict[str, float]) -> list[float]:
    """How far metrics are from meeting each constraint, in parts of its bound; not above 0 where it is met."""
    found = []
    for one in spec.constraints:
        value = metrics[one.metric]
        bounds = [(one.at_least, 1), (one.at_most, -1)]
        found.append(
            max(side * (bound - value) / max(abs(bound), 1e-12) for bound, side in bounds if bound is not None)
        )
    return found


def fingerprint(spec: ArchitectureSearchSpec) -> dict[str, Any]:
    """What two searches must have in common for one to learn from the other's trials."""
    whole = dump(spec)
    return {field: whole[field] for field in ("space", "objectives", "trial")}


def _distribution(dimension: Dimension) -> BaseDistribution:
    if not dimension.ordered or len(dimension.choices) < 2:
        return CategoricalDistribution(dimension.choices)
    low, high = min(dimension.choices), max(dimension.choices)
    kind = IntDistribution if all(isinstance(one, int) for one in dimension.choices) else FloatDistribution
    return kind(low, high)


class _Batched(BaseJournalBackend):
    """A journal file that can take several appends as one, and that keeps no half of one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        _drop_torn(path)
        self._file = JournalFileBackend(str(path))
        self._held: list[dict[str, Any]] | None = None
        self._begin: int | None = None
        """Number of the first log that is held."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        if self._held is not None:
            self._held += logs
            return
        try:
            self._file.append_logs(logs)
        except OSError:
            _drop_torn(self._path)
            raise

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        if self._held is None:
            return self._file.read_logs(log_number_from)
        if self._begin is None:
            self._begin = log_number_from
        return self._held[log_number_from - self._begin :]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Appends inside are one append at the end. Whoever made them has seen them then, even if that fails."""
        held: list[dict[str, Any]] = []
        self._held, self._begin = held, None
        try:
            yield
        finally:
            self._held = None
        if held:
            self.append_logs(held)


def open_store(volume: Path | None, url: str | None) -> Store:
    """A journal on a volume, or a database.

    Raises:
        InvalidJob: the database's URL can't be used.
        OSError: the volume can't be written, or the database can't be reached.
    """
    if url is None:
        assert volume is not None
        volume.mkdir(parents=True, exist_ok=True)
        backend = _Batched(volume / JOURNAL)
        return Store(JournalStorage(backend), backend.together)
    scheme, _, rest = url.partition("://")
    if scheme not in ("postgresql", "postgres") or not rest:
        raise InvalidJob("storage.postgresql: its Secret's url must be postgresql://user:password@host/database")
    try:
        return Store(RDBStorage(f"postgresql+pg8000://{rest}", engine_kwargs={"pool_pre_ping": True}))
    except (SQLAlchemyError, ImportError) as error:
        first = str(error).strip().splitlines()[0][:300]
        raise OSError(f"storage.postgresql: the database can't be used: {first}") from error


def _drop_torn(journal: Path) -> None:
    """A line that was being written when its writer was killed was never answered for: it goes.

    Left there, the next line would be appended to it.
    """
    try:
        size = journal.stat().st_size
    except FileNotFoundError:
        return
    with journal.open("rb+") as file:
        kept = size
        while kept > 0:
            file.seek(max(0, kept - 4096))
            part = file.read(kept - file.tell())
            if (end := part.rfind(b"\n")) >= 0:
                kept -= len(part) - end - 1
                break
            kept -= len(part)
        if kept < size:
            log.warning("the journal's last line was torn: %d bytes are dropped", size - kept)
            file.truncate(kept)
            os.fsync(file.fileno())


def finite(metrics: dict[str, Any]) -> dict[str, float]:
    """What of a trial's metrics are finite numbers."""
    numbers = {k: float(v) for k, v in metrics.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def one_line(space: Space, architecture: Architecture) -> str:
    """An architecture for a person."""
    return json.dumps(space.describe(architecture), separators=(",", ":"), default=str)
