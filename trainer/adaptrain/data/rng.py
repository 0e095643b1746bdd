"""Random numbers that depend on what they are for, and never on who draws them.

Everything random in training is a function of (seed, purpose, epoch, sample), so that a step can be taken again, by
other workers, with the same outcome.
"""

import hashlib
import random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

U64 = NDArray[np.uint64]


class GlobalRandom:
    """The process's own generators (torch's, Python's, NumPy's) as others see them inside ``with``, and only there."""

    def __init__(self) -> None:
        self._hidden = self._get()

    def seed(self, seed: int) -> None:
        """Begin anew, inside the next ``with``."""
        with self:
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *_: object) -> None:
        self._swap()

    def _swap(self) -> None:
        now = self._get()
        ours, pythons, numpys = self._hidden
        torch.set_rng_state(ours)
        random.setstate(pythons)
        np.random.set_state(numpys)
        self._hidden = now

    @staticmethod
    def _get() -> tuple[torch.Tensor, Any, Any]:
        return torch.get_rng_state(), random.getstate(), np.random.get_state()


def seed_torch(seed: int) -> None:
    """Seed torch's generators on all devices: as ``torch.manual_seed``.

    That takes a millisecond where there is no GPU, since it keeps the caller's stack for the day on which one is used
    (``torch.cuda._lazy_call``).
    """
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def seed_global(seed: int) -> None:
    """Seed the process's own generators: torch's, Python's and NumPy's."""
    seed_torch(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def seed_sample(seed: int, index: int) -> None:
    """Seed the process's own generators for the making of one sample, which happens on the CPU."""
    own = derive(seed, index)
    torch.default_generator.manual_seed(own)
    random.seed(own)
    np.random.seed(own % 2**32)


def derive(*parts: int | str) -> int:
    """A seed in [0, 2**63) from what it is for."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def bits(seed: int, counters: U64) -> U64:
    """64 random bits for each counter: SplitMix64 (Steele, Lea, Flood 2014, figure 15), vectorized.

    A counter-based generator lets each sample have its own stream without a generator object for each.
    """
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + (counters + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def uniform(seed: int, counters: U64) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), one for each counter."""
    return (bits(seed, counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(seed: int, counters: U64) -> NDArray[np.float64]:
    """Standard normal numbers, one for each counter (Box and Muller, 1958)."""
    radius = np.sqrt(-2.0 * np.log1p(-uniform(seed, counters)))
    return radius * np.cos(2.0 * np.pi * uniform(seed ^ 0x5851F42D4C957F2D, counters))
