"""Faults by seed: what befalls a job, when, and whom. Pure: the same seed gives the same schedule everywhere."""

import random
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal[
    "kill", "hang", "freeze", "slow", "leave", "join", "hang-up", "mute", "sever", "coordinator", "all", "full"
]
"""
kill: a worker's process is killed and replaced. hang: it is stopped for a while and goes on, perhaps after others have
left it behind. freeze: it is stopped, then killed. slow: it is stopped and goes on many times. leave: it is asked to
end, and replaced. join: one more worker, or one less if there are many. hang-up: its control connection breaks.
mute: nothing that it says arrives for a while, or nothing that it is told. sever: its connections to the other workers
break. coordinator: killed, replaced later. all: every worker is killed at once. full: the disk is full for a while.
"""
KINDS: tuple[Kind, ...] = get_args(Kind)
WEIGHTS = {"kill": 4, "hang": 3, "leave": 2, "join": 2, "coordinator": 2, "all": 1}
LONGEST_PAUSE = 1.5


@dataclass(frozen=True)
class Fault:
    kind: Kind
    after: float
    """Seconds since the fault before it, or since everybody had recovered from that."""
    calm: bool
    """Whether it waits until everybody has recovered from the one before."""
    whom: float
    """Which worker, as a fraction of those that there are then."""
    lasts: float
    """Seconds: how long it lasts, or until what is lost is replaced."""

    def __str__(self) -> str:
        return f"{self.kind}{'' if self.calm else '+'} {self.lasts:.1f} s"


def schedule(seed: int, length: int) -> list[Fault]:
    """``length`` faults. Half of them strike before the job has recovered from the one before."""
    chance = random.Random(seed)
    kinds = chance.choices(KINDS, [WEIGHTS.get(kind, 1) for kind in KINDS], k=length)
    return [
        Fault(
            kind,
            after=chance.uniform(0, LONGEST_PAUSE),
            calm=chance.random() < 0.5,
            whom=chance.random(),
            # Around the time after which who is silent is taken for lost.
            lasts=chance.choice([chance.uniform(0, 1), chance.uniform(2, 5)]),
        )
        for kind in kinds
    ]
