"""Optuna's samplers as algorithms: one objective or several, with constraints.

- TPE (Bergstra et al., 2011, section 4; Watanabe, 2023); with several objectives it is MOTPE (Ozaki et al., 2022).
- NSGA-II (Deb et al., 2002, section III).
- GP: logarithm of the expected improvement (Ament et al., 2023), of the hypervolume with several objectives.

Optuna's own state would depend on more than the history: so each ask has a sampler of its own, seeded from (seed,
number of the trial), and a study in memory that holds what was told, in that order, and nothing else.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from adaptrain.search.algorithms.base import Algorithm, Proposal
from adaptrain.search.spaces.base import Architecture, Space


class OptunaAlgorithm(Algorithm):
    """
    Args:
        objectives: how many there are, all maximized.
    """

    def __init__(self, space: Space, seed: int, objectives: int = 1) -> None:
        super().__init__(space, seed)
        self._storage = _Storage()
        with _Quiet():
            self._study = optuna.create_study(storage=self._storage, directions=["maximize"] * objectives)
        self._distributions: dict[str, BaseDistribution] = {
            dimension.name: CategoricalDistribution(range(len(dimension.choices))) for dimension in space.dimensions
        }
        self._varied = {name: one for name, one in self._distributions.items() if not one.single()}
        self._good = 0
        self._constrained = False

    def tell(self, architecture: Architecture, value: float | tuple[float, ...], violation: float = 0.0) -> None:
        """How good one is.

        Args:
            value: of the objective, or of each; one that is not finite: it failed.
            violation: of the constraints, added up; 0: they are met.
        """
        values = value if isinstance(value, tuple) else (value,)
        good = bool(np.isfinite(values).all())
        # `pick` is by the first objective, among those that meet the constraints.
        super().tell(architecture, values[0] if good and violation <= 0 else np.nan)
        if good:
            if violation > 0 and not self._constrained:
                self._constrained = True
                for trial in self._study.get_trials(deepcopy=False):  # Optuna wants it of all, or of none
                    trial.set_constraint("violation", 0.0)
            constraints = {"violation": violation} if self._constrained else None
            state, attributes = TrialState.COMPLETE, self._attributes(self._good)
            self._add(architecture, state, values=values, constraints=constraints, system_attrs=attributes)
            self._good += 1

    def propose(self, rng: np.random.Generator, pending: Sequence[Architecture]) -> Proposal:
        with _Quiet():
            sampler = self._sampler(int(rng.integers(2**31)))
            # It would gather this from all trials, which takes longer than all else.
            sampler.infer_relative_search_space = lambda study, trial: self._varied  # type: ignore[method-assign]
            self._study.sampler = sampler
            for architecture in pending:
                self._add(architecture, TrialState.RUNNING)
            trial = self._study.ask(self._distributions)
            self._storage.keep(self._study._study_id, self._good)
        found = tuple(int(trial.params[dimension.name]) for dimension in self.space.dimensions)
        return Proposal(self.fresh(found, rng))  # Optuna may ask for what was tried, or can't be built

    def _add(self, architecture: Architecture, state: TrialState, **more: Any) -> None:
        params = {dimension.name: choice for dimension, choice in zip(self.space.dimensions, architecture, strict=True)}
        self._study.add_trial(create_trial(state=state, params=params, distributions=self._distributions, **more))

    def _sampler(self, seed: int) -> BaseSampler:
        raise NotImplementedError

    def _attributes(self, number: int) -> dict[str, Any]:
        """What the sampler would have noted of the trial that was the ``number``-th that did not fail."""
        return {}


class TPE(OptunaAlgorithm):
    """With several objectives: MOTPE."""

    def _sampler(self, seed: int) -> BaseSampler:
        return TPESampler(seed=seed)


class GP(OptunaAlgorithm):
    """Needs torch."""

    def _sampler(self, seed: int) -> BaseSampler:
        from optuna.samplers import GPSampler

        return GPSampler(seed=seed, warn_independent_sampling=False)


class NSGA2(OptunaAlgorithm):
    """
    Args:
        population: of a generation.
    """

    def __init__(self, space: Space, seed: int, objectives: int = 1, population: int = 20) -> None:
        super().__init__(space, seed, objectives)
        self.population = population

    def _sampler(self, seed: int) -> BaseSampler:
        return _Sorted(seed=seed, population_size=self.population)

    def _attributes(self, number: int) -> dict[str, Any]:
        return {_Sorted._get_generation_key(): number // self.population}


class _Sorted(NSGAIISampler):
    """Parents come in the same order when they are chosen as whenever they are looked up later."""

    def select_parent(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        return sorted(super().select_parent(study, generation), key=lambda trial: trial.number)


class _Storage(InMemoryStorage):
    """Forgets the trials that were only asked for: a trial is told as a new one."""

    def keep(self, study: int, trials: int) -> None:
        held = self._studies[study].trials
        for trial in held[trials:]:
            del self._trial_id_to_study_id_and_number[trial._trial_id]
        del held[trials:]


class _Quiet:
    """Optuna says nothing meanwhile."""

    def __enter__(self) -> None:
        self._before = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)

    def __exit__(self, *_: object) -> None:
        optuna.logging.set_verbosity(self._before)
