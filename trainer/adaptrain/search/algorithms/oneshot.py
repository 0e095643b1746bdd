"""One-shot methods as ask and tell: the first trial trains a network that all cells share, and ranks cells by it; the
next ones are the first of that ranking, trained from scratch.

Shared weights hardly tell the good cells from each other (Li and Talwalkar, 2019, section 4; Yu et al., 2020), so it is
the search's own trials that do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from adaptrain.config.arguments import flag, positive, positive_number
from adaptrain.search.algorithms.base import Proposal
from adaptrain.search.algorithms.evolution import RegularizedEvolution
from adaptrain.search.algorithms.scalarization import ScalarizedSearcher
from adaptrain.search.spaces.base import Architecture, Space
from adaptrain.search.spaces.cells import Darts
from adaptrain.search.spaces.nasbench201 import NasBench201

CellSpace = NasBench201 | Darts
"""Spaces of which there is a network that holds all of their cells."""
SUPERNET: Architecture = ()
"""In place of an architecture: the network that holds them all."""
Ranking = list[tuple[Architecture, float]]
"""Architectures with their scores: the largest first."""
MOST_RANKED = 300
"""Of a ranking that is told: it has to fit into one frame."""


@dataclass
class Method:
    """What all methods take.

    Attributes:
        epochs: passes over the half of the training data that trains the shared weights.
        batch_size: samples in a step.
        rate: first learning rate of the shared weights.
        samples: of the training data, at most, drawn by the seed; absent: all.
    """

    name: ClassVar[str]
    epochs: int
    batch_size: int
    rate: float
    samples: int | None = None

    def __post_init__(self) -> None:
        self.epochs = positive("epochs", self.epochs)
        self.batch_size = positive("batch_size", self.batch_size)
        self.rate = positive_number("rate", self.rate)
        self.samples = None if self.samples is None else positive("samples", self.samples)


@dataclass
class DartsMethod(Method):
    """
    Attributes:
        single_path: each step takes one cell, drawn by the shares (Dong and Yang, 2019), else the mixture of all.
        second_order: the weights' next step counts for the logits (equation 7), else their present ones do (equation 6
            with ξ = 0).
        auxiliary: auxiliary skip connections, against the collapse to skips; absent: of the mixture, which collapses.
        alpha_rate: learning rate of the logits.
    """

    name: ClassVar[str] = "darts"
    epochs: int = 150
    batch_size: int = 16
    rate: float = 0.05
    single_path: bool = True
    second_order: bool = False
    auxiliary: bool | None = None
    alpha_rate: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        self.single_path = flag("single_path", self.single_path)
        self.second_order = flag("second_order", self.second_order)
        self.auxiliary = not self.single_path if self.auxiliary is None else flag("auxiliary", self.auxiliary)
        self.alpha_rate = positive_number("alpha_rate", self.alpha_rate)


@dataclass
class EnasMethod(Method):
    """
    Attributes:
        controller_steps: after each pass, one cell each.
        controller_rate: learning rate of the controller.
    """

    name: ClassVar[str] = "enas"
    epochs: int = 150
    batch_size: int = 16
    rate: float = 0.05
    controller_steps: int = 4
    controller_rate: float = 0.0035

    def __post_init__(self) -> None:
        super().__post_init__()
        self.controller_steps = positive("controller_steps", self.controller_steps)
        self.controller_rate = positive_number("controller_rate", self.controller_rate)


@dataclass
class SposMethod(Method):
    """
    Attributes:
        evaluations: cells that evolution looks at.
    """

    name: ClassVar[str] = "spos"
    epochs: int = 120
    batch_size: int = 16
    rate: float = 0.05
    evaluations: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        self.evaluations = positive("evaluations", self.evaluations)


METHODS: dict[str, type[Method]] = {one.name: one for one in (DartsMethod, EnasMethod, SposMethod)}


class OneShot:
    """A ``Searcher``. It asks for ``SUPERNET`` until it is told a ranking, then for what that ranks, in its order; then
    regularized evolution goes on from what was trained."""

    def __init__(self, space: CellSpace, seed: int, method: Method) -> None:
        self.space: Space = space
        self.cells = space
        self.method = method
        self._evolution = RegularizedEvolution(space, seed)
        self._after = ScalarizedSearcher(self._evolution, 1)
        self._ranking: Ranking | None = None

    def ask(self, number: int, pending: Sequence[Architecture] = ()) -> Proposal:
        if self._ranking is None:
            return Proposal(SUPERNET, {"supernet": self.method.name})
        tried = self._evolution.seen | {self.space.key(architecture) for architecture in pending}
        for rank, (architecture, score) in enumerate(self._ranking, 1):
            if self.space.key(architecture) not in tried:
                return Proposal(architecture, {"rank": rank, "score": score})
        return self._after.ask(number, pending)

    def tell(self, architecture: Architecture, values: tuple[float, ...], violation: float = 0.0) -> None:
        self._after.tell(architecture, values, violation)

    def rank(self, ranking: Ranking) -> None:
        """What the network said of cells."""
        self._ranking = ranking
