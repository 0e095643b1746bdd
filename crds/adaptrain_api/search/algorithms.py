"""Searches whose first trial trains one network that all cells share: what they can be made of."""

from adaptrain_api.base import Rule

ONE_SHOT = ("darts", "enas", "spos")
"""Algorithms."""
SPACES = ("nasbench201", "darts")
"""Of whose cells there is such a network."""
_NAMES = ", ".join(ONE_SHOT)
_OTHER = f"!(self.algorithm.name in {list(ONE_SHOT)!r})"


RULES = (
    Rule(
        cel=f"{_OTHER} || (has(self.space.name) && self.space.name in {list(SPACES)!r}"
        " && (!has(self.space.parameters) || size(self.space.parameters) == 0))",
        message=f"{_NAMES} look for cells in one network that holds all of them: set space.name to"
        f" {' or '.join(SPACES)}, and leave out space.parameters",
        check=lambda self: not self.trains_supernet or (self.space.name in SPACES and not self.space.parameters),
        path=".algorithm.name",
    ),
    Rule(
        cel=f"{_OTHER} || (!has(self.trial.callable) && self.execution == 'Pool')",
        message=f"{_NAMES} train one network in an evaluator, on trial.data: give trial.data and phases instead of a"
        " callable, and set execution to Pool",
        check=lambda self: not self.trains_supernet or (self.trial.callable is None and self.execution == "Pool"),
        path=".algorithm.name",
    ),
    Rule(
        cel=f"{_OTHER} || !has(self.budget.trials) || self.budget.trials >= 2",
        message=f"with {_NAMES} the first trial trains the network that all cells share: set budget.trials to at least"
        " 2, so that a cell is trained, too",
        check=lambda self: not self.trains_supernet or self.budget.trials is None or self.budget.trials >= 2,
        path=".budget.trials",
    ),
)
"""Of ``ArchitectureSearchSpec``."""
