"""Which coordinator's group may leave something in a folder of checkpoints.

A *lineage* is what the workers of one coordinator of one job train. It claims the folder before it saves: with a file
whose name is the claim, ``<term>.<coordinator>.<job's uid>``. Files are only ever added, and the highest term holds
the folder: so a writer that was stopped for however long can't take the folder back. Terms order the lineages, and the
epochs of the checkpoints begin with them: a job that was deleted and made again counts its coordinators from 1 anew,
and a lineage of it is the newer one all the same.
"""

import re
from contextlib import suppress
from dataclasses import dataclass

from adaptrain.elastic.storage.directory import Storage

CLAIM = re.compile(r"(\d{10})\.(\d+)\.([A-Za-z0-9-]*)")
MOST_CLAIMS = 100
"""Older ones are removed: none of their coordinators lives any more."""


class Superseded(Exception):
    """This group may leave nothing behind now."""


class Held(Superseded):
    """Another lineage holds the folder, and this one won't get it back."""


@dataclass(frozen=True, order=True)
class Claim:
    """One lineage's claim. Of two with the same term, made at the same moment, the greater holds."""

    term: int
    number: int
    """Of the coordinator."""
    job: str
    """The job's uid."""

    @property
    def name(self) -> str:
        return f"{self.term:010d}.{self.number}.{self.job}"

    def __str__(self) -> str:
        return f"coordinator {self.number} of the job with uid {self.job or 'unknown'}"


def claims(storage: Storage) -> list[Claim]:
    """All claims, the newest last.

    Raises:
        OSError: storage refused.
    """
    found = [CLAIM.fullmatch(name) for name in storage.claims()]
    return sorted(Claim(int(match[1]), int(match[2]), match[3]) for match in found if match is not None)


def claim(storage: Storage, job: str, number: int) -> Claim:
    """The claim of a coordinator's lineage, which holds the folder from now on, or did already.

    Raises:
        Held: a newer coordinator of the job, or a job that came after this one, holds it.
        OSError: storage refused.
    """
    known = claims(storage)
    holder = known[-1] if known else None
    if holder is not None and (holder.job, holder.number) == (job, number):
        return holder
    if holder is not None and any(one.job == job for one in known) and (holder.job != job or holder.number > number):
        raise _held(holder)
    after = max([holder.term if holder is not None else 0, *(saved.epoch >> 32 for saved in storage.saved())])
    mine = Claim(after + 1, number, job)
    storage.claim(mine.name)
    check(storage, mine)
    for old in known[:-MOST_CLAIMS]:
        with suppress(OSError):
            storage.forget_claim(old.name)
    return mine


def check(storage: Storage, mine: Claim) -> None:
    """Make sure that a claim holds.

    Raises:
        Held: another one does.
        OSError: storage refused.
    """
    holder = max(claims(storage), default=None)
    if holder is None or holder < mine:
        storage.claim(mine.name)  # the folder was emptied
    elif holder > mine:
        raise _held(holder)


def _held(holder: Claim) -> Held:
    return Held(
        f"{holder} holds the folder: end one of the two jobs; a job that was restored without its status goes on when"
        " it is deleted and applied again"
    )
