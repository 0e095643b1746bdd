"""A sample of ``python -m tests.faults.operator``: clocks apart, hostile words, forged jobs, requests that fail."""

import pytest

from tests.faults.operator import Figures, run


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_seeds(first: int) -> None:
    for seed in range(first, first + 10):
        run(seed, Figures())
