"""What becomes of a step whose loss or gradient is infinite or no number, on any worker.

All members see it in the sums that they share, and decide alike before the optimizer steps. Such a step's samples are
passed over: that is applied as a whole, as a step is, and whoever was lost meanwhile learns it with the state.
"""

import logging
from typing import Any, Literal, get_args

import torch

from adaptrain.elastic.checkpoint.manager import Checkpoints
from adaptrain.elastic.collectives.broadcast import broadcast_tensors
from adaptrain.elastic.collectives.process_group import ElasticProcessGroup
from adaptrain.elastic.state.replicated import ReplicatedState, tell
from adaptrain.errors import InvalidJob

log = logging.getLogger(__name__)

Policy = Literal["fail", "skip", "rollback"]
MOST = 10
"""So many times in a row, or back to one checkpoint, and training fails."""


class NotFinite(Exception):
    """The loss or a gradient is no longer a number."""


class NonFiniteGuard:
    """A policy: fail, skip the step, or skip it and roll back to a checkpoint (as Chowdhery et al., 2022, section 5.1).

    Args:
        advice: what the user may do about it.

    Attributes:
        checkpoints: where to go back to.
    """

    def __init__(self, policy: str, advice: str) -> None:
        if policy not in get_args(Policy):
            raise InvalidJob(f"non_finite is {policy!r}: it must be {', '.join(get_args(Policy)[:-1])} or rollback")
        self.policy = policy
        self.checkpoints: Checkpoints | None = None
        self._advice = advice

    def skip_step(self, group: ElasticProcessGroup, state: ReplicatedState, why: str) -> None:
        """Make up for a step that is not taken. The caller moves the cursor on behind its samples.

        Raises:
            NotFinite: training can't go on.
            ProcessGroupBroken: somebody was lost meanwhile; the state is as before.
        """
        c = state.counters
        if self.policy == "fail":
            raise NotFinite(f"{why} at step {c.step}: {self._advice}")
        said = "the step's samples are passed over"
        if self.policy == "skip":
            times, again = c.in_a_row + 1, "in a row"
        else:
            sent = self._newest(group, state)
            if sent is None:
                raise NotFinite(f"{why} at step {c.step}, and there is no checkpoint to go back to: {self._advice}")
            step, tensors, counters = sent
            times = c.in_a_row + 1 if step == c.rolled_back_to else 1
            again = f"since the checkpoint of step {step}"
            said += f", and training goes back to the checkpoint of step {step}"
        if times >= MOST:
            raise NotFinite(f"{why} at step {c.step}, as {times - 1} times before {again}: {self._advice}")
        if self.policy == "rollback":
            state.rollback(tensors, counters)
            c.rolled_back_to = step
        c.skipped, c.in_a_row = c.skipped + 1, times
        if group.rank == 0:
            log.warning("step %d: %s; %s", c.step, why, said)
            group.note(f"{why} at step {c.step}: {said}")

    def applied(self, state: ReplicatedState) -> None:
        """A step was good."""
        if self.policy == "skip":
            state.counters.in_a_row = 0

    def _newest(
        self, group: ElasticProcessGroup, state: ReplicatedState
    ) -> tuple[int, dict[str, torch.Tensor], dict[str, Any]] | None:
        """Step, weights and optimizer, and counters of the newest sound checkpoint, as the first member reads them, on
        every one."""
        found = None
        if group.rank == 0 and (checkpoints := self.checkpoints) is not None:
            found = checkpoints.wait_for(lambda: checkpoints.sound(state), group.check)
        with group.together():
            said = tell(group, 0, {"counters": found[1] if found is not None else None})
        counters: dict[str, Any] | None = said["counters"]
        if counters is None:
            return None
        # Aside, until all of it is here.
        room = state.room(counters)
        if found is not None:
            room = {name: found[0][name].to(t.device) for name, t in room.items()}
        tensors = {name: room[name] for name in sorted(room) if name.startswith(("model.", "optimizer."))}
        with group.together():
            broadcast_tensors(list(tensors.values()), group, [0])
        return counters["step"], tensors, counters
