"""Who takes part in training: a pure state machine, with no clock, socket or thread of its own.

The coordinator feeds it events (a worker said hello, is ready, closed its connection, …) with the time at which they
happened, and carries out the actions that it returns. Its one invariant: **a group is only ever formed of members that
all said, for that very epoch, that they have left every earlier group.** So no member can wait in a group that others
believe to be over.

An epoch is ``number << 32 | count``: the high part is the coordinator's own number, which the operator writes to the
job's status before the coordinator exists, so that of two coordinators only one is obeyed.

A change is *planned* when everybody can still compute (a join, a farewell): members finish the step that they are in
and leave together. It is *unplanned* when somebody is lost: whoever waits for the lost one is told to leave at once.

A worker may say hello while it is still *preparing* (imports, data, the model, a first pass). It is no member before it
is prepared, so nobody waits for it; the operator replaces one that prepares for too long.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from adaptrain.rpc.framing import SILENCE_SECONDS, Frame

SETTLE_SECONDS = 2.0
"""A coordinator that replaces another gives the members of the running group this long to come back, before it takes
the missing ones for lost."""
MISSED_SECONDS = 1.5
"""Who is not heard for this long while all others of its group wait for it loses its place; it may come back."""
HUNG_SECONDS = 30.0
"""A member that computes this long while all others wait for it is hung, unless it announced a longer section."""
ASIDE_SECONDS, ASIDES = 5.0, 3
"""A member that works so long on its first step (a compiler, a GPU's kernels) while all others wait for it is set
aside: they go on, and it joins again when it is done. So often at most; after that it is as any other one."""
STUCK_SECONDS = 120.0
"""When all members of a group wait this long for one another, their group is broken and none of them noticed."""

GATHER_SECONDS = 2.0
"""A job that nobody trains yet waits this long for workers that still prepare, once others could begin."""
PREPARING_SILENCE_SECONDS = 60.0
"""A worker that prepares is not taken for lost sooner: an import may keep all of its threads from running."""

AWAY_SECONDS = 1.0
"""A member of the running group whose connection closed has this long to come back, as long as no other member of the
group misses it. A killed one is missed at once."""
FLAPS, FLAP_SECONDS = 3, 60.0
"""Who was lost so often in so short a time is held back when it comes again."""
HELD_SECONDS = (2.0, 10.0)
"""At first, and at most: twice as long each time."""

COUNT_BITS = 32
CHANGES_KEPT = 50
SILENT_KEPT = 256
BUSY = ("computing", "warming", "section")


def coordinator_of(epoch: int) -> int:
    """The number of the coordinator that opened an epoch."""
    return epoch >> COUNT_BITS


@dataclass(frozen=True)
class Send:
    to: str
    frame: Frame


@dataclass(frozen=True)
class Drop:
    """Close the connection of a member that is no longer one."""

    id: str
    why: str


Action = Send | Drop
Doing = Literal["idle", "computing", "warming", "waiting", "section"]
"""Warming: computing its first step."""


@dataclass(frozen=True)
class Activity:
    """What a worker's training thread does, as its beats tell."""

    doing: Doing = "idle"
    since: float = 0.0
    """When it began, on the coordinator's clock, seconds."""
    bound: float = HUNG_SECONDS
    """Seconds that it may take at most: announced by long sections (saving, loading, compiling)."""


@dataclass
class Member:
    id: str
    name: str
    host: str
    port: int
    """Of this worker's own rendezvous: members meet at the first one's. A script's launcher has a store for each epoch,
    and says so when it is ready."""
    joined: float
    heard: float
    version: int = 0
    step: int = 0
    group: int = 0
    """The epoch whose group it is in; 0: none."""
    peers: frozenset[str] = frozenset()
    """Everybody in that group, itself included."""
    ready: bool = False
    left: bool = False
    """Whether it has left a group for the epoch that is being prepared."""
    leaving: bool = False
    ended: bool = False
    """Whether the script that it launched for the running group has ended well."""
    trained: bool | None = None
    """Whether it has applied a step itself, or its script has run for a while; None: an older release does not say."""
    away: float | None = None
    """Since when it has no connection."""
    asides: int = 0
    """How often it was set aside."""
    activity: Activity = field(default_factory=Activity)

    @property
    def impatient(self) -> bool:
        """Whether others wait for its first step no longer than for any other: it was set aside too often."""
        return self.activity.doing == "warming" and self.asides >= ASIDES


@dataclass(frozen=True)
class Silence:
    id: str
    name: str
    since: float


@dataclass(frozen=True)
class Change:
    """A change of membership in words, for people."""

    time: float
    epoch: int
    message: str
    count: int
    """How many were told before it."""


class Membership:
    """The members of one job. Every method takes the time (seconds of a clock that is never set) and returns what is
    to be done."""

    def __init__(self, number: int, minimum: int = 1) -> None:
        self.minimum = minimum
        self.epoch = number << COUNT_BITS
        self.members: dict[str, Member] = {}
        self.silent: dict[str, Silence] = {}
        self._missing: dict[str, Silence] = {}
        """Who lost its place, and is not silent for long enough yet to be given up."""
        self.changes: list[Change] = []
        self.finished = False
        self._told = 0
        self._formed = False
        self._planned = False
        # A first coordinator has no predecessor whose group could still run.
        self._settled = number <= 1
        self._settle_until: float | None = None
        self._ticked: float | None = None
        self._changed = 0.0
        self._losses: dict[str, list[float]] = {}
        self._held: dict[str, tuple[float, Member]] = {}
        self._aside: dict[str, Member] = {}
        """Who still works on its first step, which nobody waits for any more."""
        self._preparing: dict[str, Member] = {}
        self._gather_until: float | None = None
        """Since members that could begin wait for those that prepare."""

    @property
    def state(self) -> Literal["waiting", "forming", "running", "done"]:
        if self.finished:
            return "done"
        if self._formed:
            return "running"
        return "forming" if len(self._ranked()) >= self.minimum else "waiting"

    def hello(
        self,
        now: float,
        id: str,
        name: str,
        host: str,
        port: int,
        group: int = 0,
        peers: frozenset[str] = frozenset(),
        version: int = 0,
        trained: bool | None = None,
        preparing: bool = False,
    ) -> list[Action]:
        """A worker arrived: fresh (``group`` 0; it may still be preparing), or back while it is still in a group of
        ``peers``."""
        known = self.members.get(id)
        if known is not None and self._formed and group == known.group == self.epoch:
            known.away, known.heard = None, now
            return []
        actions = self._lose(now, id, "came back on another connection") if known is not None else []
        self.silent.pop(id, None)
        self._missing.pop(id, None)
        self._aside.pop(id, None)
        self._preparing.pop(id, None)
        member = Member(id, name, host, port, now, now, version, group=group, peers=peers, trained=trained)
        if preparing and not group and not self.finished:
            self._preparing[id] = member
            return actions
        return actions + self._let_in(now, member)

    def prepared(self, now: float, id: str) -> list[Action]:
        """A worker that may have been preparing is prepared."""
        if (member := self._preparing.pop(id, None)) is None:
            return []
        member.joined = member.heard = now
        return self._let_in(now, member)

    def ready(self, now: float, id: str, epoch: int, port: int | None = None) -> list[Action]:
        """A worker has left every group and waits for this epoch's."""
        if (aside := self._aside.pop(id, None)) is not None:
            aside.joined, aside.group, aside.peers = now, 0, frozenset()
            aside.port = aside.port if port is None else port
            return self._admit(now, aside)
        member = self.members.get(id)
        if member is None or epoch != self.epoch or self._formed:
            return []
        member.ready, member.left, member.group = True, member.group != 0, 0
        member.port = member.port if port is None else port
        return self._form(now)

    def broken(self, now: float, id: str, epoch: int) -> list[Action]:
        """A collective failed in this worker's group, mostly because another one of it died a moment ago."""
        member = self.members.get(id)
        if member is None:
            return []
        if self._planned and not self._formed and not member.ready and epoch == member.group:
            return self._open(now, f"{member.name} lost touch with another worker", planned=False)
        if epoch != self.epoch or not self._formed:
            return []
        away = next((m for m in self.members.values() if m.away is not None), None)
        if away is not None:
            return self._lose(now, away.id, "is gone")
        return self._open(now, f"{member.name} lost touch with another worker", planned=False)

    def leaving(self, now: float, id: str) -> list[Action]:
        """A worker was asked to end (SIGTERM) and leaves at its step's end."""
        if self._aside.pop(id, None) is not None:
            return [Send(id, {"do": "go", "save": False})]
        if self._preparing.pop(id, None) is not None:
            return [Send(id, {"do": "go", "save": False}), *self._form(now)]
        member = self.members.get(id)
        if member is None or member.leaving:
            return []
        member.leaving = True
        if self._formed:
            return self._open(now, f"{member.name} leaves", planned=True)
        return self._form(now)

    def done(self, now: float, id: str) -> list[Action]:
        """A worker has finished training. Others of its group may still be about to, and may yet need each other."""
        self.members.pop(id, None)
        return [*self._finish(), *self._form(now)]

    def ended(self, now: float, id: str, epoch: int, failed: bool) -> list[Action]:
        """The script that a worker launched has ended. Training is done when all have; who fails is to blame, unless
        somebody else was lost or failed before, which ends the scripts of all others too."""
        member = self.members.get(id)
        if member is None or epoch != self.epoch or not self._formed:
            return []
        if not failed:
            member.ended = True
            if not all(m.ended for m in self.group):
                return []
            return [*self._finish(), *(Send(m.id, {"do": "finish"}) for m in self.group)]
        away = next((m for m in self.members.values() if m.away is not None), None)
        if away is not None:
            return self._lose(now, away.id, "is gone")
        return [Send(id, {"do": "fail"}), *self._lose(now, id, "failed by itself")]

    def gone(self, now: float, id: str) -> list[Action]:
        """A worker's connection closed."""
        self._held.pop(id, None)
        self._aside.pop(id, None)
        if self._preparing.pop(id, None) is not None:
            return self._form(now)
        member = self.members.get(id)
        if member is not None and self._formed and member.group == self.epoch:
            member.away = now
            return []
        return self._lose(now, id, "is gone")

    def beat(
        self, now: float, id: str, activity: Activity, version: int, step: int, trained: bool | None = None
    ) -> None:
        """A worker is alive, and says what it does."""
        if (member := self.members.get(id) or self._aside.get(id) or self._preparing.get(id)) is not None:
            member.heard, member.activity, member.version, member.step = now, activity, version, step
            member.trained = trained

    def note(self, now: float, id: str, message: str) -> None:
        """A worker has something to tell to people."""
        if (member := self.members.get(id)) is not None:
            self._tell(now, f"{member.name}: {message}")

    def tick(self, now: float) -> list[Action]:
        """To be called several times a second: finds who is silent or hung, and ends settling."""
        pause = now - self._ticked if self._ticked is not None else 0.0
        self._ticked = now
        if pause > MISSED_SECONDS / 3:
            # The coordinator itself was stopped or starved, and what was said meanwhile waits in its sockets: that is
            # nobody else's silence.
            for member in (*self.members.values(), *self._aside.values(), *self._preparing.values()):
                member.heard += pause
                member.activity = replace(member.activity, since=member.activity.since + pause)
            self._changed += pause
        actions: list[Action] = []
        for id, (until, member) in list(self._held.items()):
            if now >= until:
                del self._held[id]
                member.joined = member.heard = now
                member.group, member.peers = 0, frozenset()
                actions += self._admit(now, member)
        for member in list(self.members.values()):
            if member.away is not None and now - member.away > AWAY_SECONDS:
                actions += self._lose(now, member.id, "is gone")
        for member in list(self.members.values()):
            if (quiet := now - member.heard) > SILENCE_SECONDS:
                actions += self._miss(now, member, f"was not heard for {quiet:.1f} s", member.heard)
            elif quiet > MISSED_SECONDS and self._keeps_all_waiting(member):
                why = f"was not heard for {quiet:.1f} s while all others waited for it"
                actions += self._miss(now, member, why, member.heard)
        for member in list(self._aside.values()):
            if (quiet := now - member.heard) > SILENCE_SECONDS:
                actions += self._miss(now, member, f"was not heard for {quiet:.1f} s", member.heard)
            elif now - member.activity.since > member.activity.bound:
                why = f"did not finish its first step within {member.activity.bound:.0f} s"
                actions += self._miss(now, member, why, member.activity.since)
        for member in list(self._preparing.values()):
            if (quiet := now - member.heard) > PREPARING_SILENCE_SECONDS:
                actions += [Drop(member.id, f"was not heard for {quiet:.0f} s"), *self.gone(now, member.id)]
        if self._gather_until is not None and now >= self._gather_until:
            actions += self._form(now)
        actions += self._set_aside(now)
        if (hung := self._hung(now)) is not None:
            why = f"did not answer for {self._busy(now, hung):.0f} s while others waited"
            actions += self._miss(now, hung, why, now - self._busy(now, hung))
        for missing in list(self._missing.values()):
            if now - missing.since > SILENCE_SECONDS:
                self.silent[missing.id] = self._missing.pop(missing.id)
                if len(self.silent) > SILENT_KEPT:
                    del self.silent[next(iter(self.silent))]
        if self.group and all(m.activity.doing == "waiting" and self._busy(now, m) > STUCK_SECONDS for m in self.group):
            actions += self._open(now, "all waited for one another", planned=False)
        if not self._settled and self._settle_until is not None and now >= self._settle_until:
            self._settled = True
            actions += self._open(now, "a new coordinator took over", planned=False)
        return actions

    @property
    def group(self) -> list[Member]:
        """The members of the running group, first the one that hosts its store."""
        return [m for m in self._ranked() if m.group == self.epoch] if self._formed else []

    @property
    def joining(self) -> list[str]:
        """Ids of those who are here and not in the running group."""
        inside = {m.id for m in self.group}
        return [id for id in (*self.members, *self._held, *self._aside, *self._preparing) if id not in inside]

    @property
    def preparing(self) -> list[str]:
        """Ids of those of them who still prepare."""
        return list(self._preparing)

    @property
    def here(self) -> int:
        """How many workers are here, members or not."""
        return len(self.members) + len(self._held) + len(self._aside) + len(self._preparing)

    @property
    def _opened(self) -> bool:
        return self.epoch & ((1 << COUNT_BITS) - 1) > 0

    def _ranked(self) -> list[Member]:
        return sorted((m for m in self.members.values() if not m.leaving), key=lambda m: (m.joined, m.id))

    def _tell(self, now: float, message: str) -> None:
        self.changes = [*self.changes[-(CHANGES_KEPT - 1) :], Change(now, self.epoch, message, self._told)]
        self._told += 1

    def _hold(self, now: float, id: str) -> float:
        """Seconds that a worker is held back; 0: it may come in."""
        for known in list(self._losses):
            if recent := [t for t in self._losses[known] if now - t < FLAP_SECONDS]:
                self._losses[known] = recent
            else:
                del self._losses[known]
        over = len(self._losses.get(id, ())) - FLAPS
        first, most = HELD_SECONDS
        return min(most, first * 2.0**over) if over >= 0 else 0.0

    def _let_in(self, now: float, member: Member) -> list[Action]:
        if not self.finished and (held := self._hold(now, id := member.id)) > 0:
            self._held[id] = now + held, member
            lost = f"{member.name} was lost {len(self._losses[id])} times in a minute"
            self._tell(now, f"{lost}: held back for {held:.0f} s")
            return [Send(id, {"do": "leave", "epoch": self.epoch})]
        return self._admit(now, member)

    def _finish(self) -> list[Action]:
        """Training is complete: nobody needs those that still prepare."""
        self.finished = True
        unneeded = list(self._preparing)
        self._preparing.clear()
        return [Send(id, {"do": "finish"}) for id in unneeded]

    def _gathers(self, now: float) -> bool:
        """Whether those that could begin wait for others that still prepare: for a moment, and only where nobody has
        trained yet."""
        begun = any(m.left or m.version > 0 or m.trained for m in self.members.values())
        if not self._preparing or begun or self.finished:
            return False
        if self._gather_until is None:
            self._gather_until = now + GATHER_SECONDS
        return now < self._gather_until

    def _admit(self, now: float, member: Member) -> list[Action]:
        if self.finished:
            return [Send(member.id, {"do": "finish"})]
        self.members[member.id] = member
        if not self._settled:
            return self._settle(now)
        if self._formed:
            return self._open(now, f"{member.name} joined", planned=True)
        if self._opened:  # join storms fold into the epoch that is being prepared
            self._tell(now, f"{member.name} joined")
            return [Send(member.id, {"do": "leave", "epoch": self.epoch})]
        return self._open(now, f"{member.name} joined", planned=False)

    def _keeps_all_waiting(self, member: Member) -> bool:
        if self._formed or self._planned:
            others = [m for m in self.members.values() if m.group == member.group != 0 and m is not member]
            return len(others) > 0 and all(m.activity.doing == "waiting" for m in others)
        others = [m for m in self.members.values() if m is not member]
        return len(others) > 0 and not member.ready and all(m.ready for m in others)

    def _hung(self, now: float) -> Member | None:
        """Who keeps the others waiting for longer than it may."""
        members = list(self.members.values())
        if self._formed or self._planned:
            late = [m for m in members if m.group and m.activity.doing in BUSY]
            others = [m for m in members if m.left or (m.group and m.activity.doing == "waiting")]
        else:
            late = [m for m in members if not m.ready]
            others = [m for m in members if m.ready]
        waited = max((self._busy(now, m) for m in others), default=0.0)
        over = [
            m for m in late if min(waited, self._busy(now, m)) > (HUNG_SECONDS if m.impatient else m.activity.bound)
        ]
        return min(over, key=lambda m: m.activity.since, default=None)

    def _set_aside(self, now: float) -> list[Action]:
        """Whoever still works on its first step is not waited for: the others go on, and it joins when it is done."""
        inside = [m for m in self.members.values() if m.group] if self._formed or self._planned else []
        slow = [m for m in inside if m.activity.doing == "warming" and m.asides < ASIDES]
        others = [m for m in self.members.values() if m not in slow]
        stand = [m for m in others if m.left or m.activity.doing == "waiting"]
        waited = min((self._busy(now, m) for m in (*slow, *stand)), default=0.0)
        if not slow or not others or waited <= ASIDE_SECONDS or any(m.group and m not in stand for m in others):
            return []
        if len(others) < self.minimum:
            return []
        for member in slow:
            del self.members[member.id]
            member.asides += 1
            self._aside[member.id] = member
        names = ", ".join(m.name for m in slow)
        actions = self._open(now, f"{names} still works on the first step: the others go on meanwhile", planned=False)
        return [*actions, *(Send(m.id, {"do": "leave", "epoch": self.epoch}) for m in slow)]

    def _busy(self, now: float, member: Member) -> float:
        """Seconds for which a member has done what it does, since the last change of membership."""
        return now - max(member.activity.since, self._changed)

    def _miss(self, now: float, member: Member, why: str, since: float) -> list[Action]:
        if self._aside.pop(member.id, None) is not None:
            self._tell(now, f"{member.name} {why}")
        self._missing[member.id] = Silence(member.id, member.name, since)
        return [Drop(member.id, why), *self._lose(now, member.id, why)]

    def _settle(self, now: float) -> list[Action]:
        """A new coordinator takes a running group over as it is, once all of its members are back."""
        if self._settle_until is None:
            self._settle_until = now + SETTLE_SECONDS
        inside = [m for m in self.members.values() if m.group]
        back = {m.id for m in inside}
        if not inside or any(m.group != inside[0].group or not m.peers <= back for m in inside):
            return []
        running = inside[0].group
        self._settled = self._formed = True
        self.epoch += 1
        self._tell(now, f"a new coordinator took over the {len(inside)} workers of the running group")
        for member in inside:
            member.group = self.epoch
        actions: list[Action] = [Send(m.id, {"do": "adopt", "epoch": self.epoch, "group": running}) for m in inside]
        late = [f"{m.name} joined" for m in self.members.values() if not m.group]
        late += [f"{m.name} leaves" for m in inside if m.leaving]
        if late:
            actions += self._open(now, ", ".join(late), planned=True)
        return actions

    def _lose(self, now: float, id: str, why: str) -> list[Action]:
        member = self.members.pop(id, None)
        if member is None:
            return []
        self._losses.setdefault(id, []).append(now)
        if self._formed:
            return self._open(now, f"{member.name} {why}", planned=False)
        if self._planned and not member.ready:
            # Others may wait for it in the group that they were about to leave together.
            return self._open(now, f"{member.name} {why}", planned=False)
        self._tell(now, f"{member.name} {why}")
        return self._form(now)

    def _open(self, now: float, why: str, planned: bool) -> list[Action]:
        """Open an epoch: everybody is told to leave the running group, at the step's end or at once."""
        running = self.epoch if self._formed else 0
        self.epoch += 1
        self._formed, self._planned, self._changed = False, planned, now
        self._tell(now, why)
        for member in [m for m in self.members.values() if m.away is not None]:
            del self.members[member.id]
            self._tell(now, f"{member.name} is gone")
            # Others may wait for it: no step's end will come.
            self._planned = planned = False
        actions: list[Action] = []
        for member in self.members.values():
            member.ready = member.left = False
            gently = planned and running and member.group == running
            actions.append(Send(member.id, {"do": "plan" if gently else "leave", "epoch": self.epoch}))
        return actions

    def _form(self, now: float) -> list[Action]:
        """Form the group once every member is ready for it; whoever leaves may go then."""
        if self._formed or not self._opened or not all(m.ready for m in self.members.values()):
            return []
        staying = self._ranked()
        leaving = sorted((m for m in self.members.values() if m.leaving), key=lambda m: (-m.version, m.id))
        actions: list[Action] = []
        for index, member in enumerate(leaving):
            del self.members[member.id]
            # The last to go would take the progress since the newest checkpoint with it.
            actions.append(Send(member.id, {"do": "go", "save": not staying and index == 0}))
        if not staying or (len(staying) < self.minimum and not self.finished) or self._gathers(now):
            return actions
        self._formed, self._changed, self._gather_until = True, now, None
        first = staying[0]
        for rank, member in enumerate(staying):
            member.group, member.left, member.ended = self.epoch, False, False
            actions.append(
                Send(
                    member.id,
                    {
                        "do": "form",
                        "epoch": self.epoch,
                        "rank": rank,
                        "peers": [m.id for m in staying],
                        "host": first.host,
                        "port": first.port,
                    },
                )
            )
        return actions
