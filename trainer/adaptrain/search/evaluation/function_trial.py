"""A trial that calls a function of the user's with an architecture."""

from collections.abc import Callable, Mapping
from typing import Any

from adaptrain_api.search.job import ArchitectureSearchSpec

from adaptrain.config.imports import import_callable
from adaptrain.errors import InvalidJob
from adaptrain.search.evaluation.unused_dimensions import MODEL, TrackedChoices

# No torch here: a function that does without is called in a process that is forked in a moment.

Metrics = dict[str, float]
Report = Callable[[int, Metrics], None]


class Trial:
    """What a function of the user's is called with.

    Attributes:
        number: of the trial.
        choices: what was chosen, by the space's dimensions.
        model: the architecture as a job's model, ``{"name": …, "args": …}``; None for a space of parameters alone.
        seed: of the search.
    """

    def __init__(
        self, number: int, choices: dict[str, Any], model: dict[str, Any] | None, seed: int, report: Report
    ) -> None:
        self.number, self.choices, self.seed = number, TrackedChoices(choices), seed
        self._model, self._model_read = model, False
        self._report = report
        self._last = -1

    @property
    def model(self) -> dict[str, Any] | None:
        self._model_read = True
        return self._model

    def unread(self, parameters: list[str]) -> list[str]:
        """Which of the space's parameters were not looked at, and whether its architecture was not."""
        names = [name for name in parameters if name not in self.choices.read]
        architecture = self._model_read or self.choices.read - set(parameters)
        return names if self._model is None or architecture else [*names, MODEL]

    def report(self, step: int, **metrics: float) -> None:
        """Tell metrics on the way: a hopeless trial ends here.

        Raises:
            ValueError: the step is not greater than the one before.
        """
        if step <= self._last:
            raise ValueError(f"step {step} was reported after step {self._last}: steps have to grow")
        self._last = step
        self._report(step, metrics)


class Function:
    """The function that all trials call.

    Raises:
        InvalidJob: there is none of this name.
    """

    reusable = False
    keeps = False
    left: dict[str, Any] = {}
    """What a function trained is its own affair."""

    def __init__(self, spec: ArchitectureSearchSpec) -> None:
        assert spec.trial.callable is not None
        self._spec = spec
        self._function = import_callable("trial.callable", spec.trial.callable)
        self.unread: list[str] = []

    def begin(self) -> None:
        """In a process that is about to run a trial."""

    def run(self, given: dict[str, Any], report: Report) -> Metrics:
        """Try what the coordinator gave; ``report`` is called with steps and metrics.

        Raises:
            InvalidJob: the function returned something else than metrics.
        """
        trial = Trial(given["trial"], given["choices"], given.get("model"), self._spec.seed, report)
        returned = self._function(trial)
        self.unread = trial.unread([parameter.name for parameter in self._spec.space.parameters])
        objectives = self._spec.objectives
        if isinstance(returned, int | float) and not isinstance(returned, bool) and len(objectives) == 1:
            return {objectives[0].metric: float(returned)}
        if isinstance(returned, Mapping):
            return {str(name): float(value) for name, value in returned.items()}
        names = ", ".join(one.metric for one in objectives)
        raise InvalidJob(f"trial.callable returned {type(returned).__name__}: it has to return a mapping with {names}")

    def keep(self, trial: int) -> None:
        """Nothing."""
