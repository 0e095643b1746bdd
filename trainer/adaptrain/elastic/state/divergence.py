"""Finds out that members hold different states after the same step.

They hold the same bits, since each applies the same sums to the same state. What differs was changed by one of them
alone: a script that trains by a random number of its own, an update that depends on a clock, memory that is broken.
From there on the result would depend on which worker sends its state to the next one that joins.
"""

from typing import Any, cast

import torch
import xxhash

from adaptrain.elastic.collectives.process_group import ElasticProcessGroup
from adaptrain.errors import InvalidJob

EVERY_STEPS = 64
"""Steps from one comparison to the next, so that reading the whole state costs little."""


def compare(group: ElasticProcessGroup, tensors: dict[str, torch.Tensor], step: int) -> None:
    """Hold the members' tensors against each other. All processes of all members call it after the same step.

    Args:
        tensors: by name; of a DTensor the local shard counts.
        step: how many steps were applied.

    Raises:
        InvalidJob: on all members alike, if a tensor differs; with its name.
        ProcessGroupBroken: a member was lost meanwhile.
    """
    if group.size == 1:
        return
    digests = torch.tensor([_digest(t) for t in tensors.values()], dtype=torch.int64)
    group.all_reduce_local(digests)
    if _alike(group.gather(*_words(digests))):
        return
    rows = group.gather(*digests.tolist())
    names = [name for name, values in zip(tensors, zip(*rows, strict=True), strict=True) if len(set(values)) > 1]
    raise InvalidJob(
        f"after step {step} the workers hold different values of {names[0]} ({len(names)} of {len(tensors)} tensors"
        " differ): something changes it on one of them alone, so that the result would depend on who trains on. Let"
        " what changes weights and optimizer depend on nothing but the samples and elastic.step (see"
        " docs/how-to/own-script.md), and check the memory of the workers' nodes"
    )


def _alike(rows: list[tuple[int, ...]]) -> bool:
    return len(set(rows)) == 1


def _words(digests: torch.Tensor) -> tuple[int, int]:
    """All digests in two numbers."""
    told = xxhash.xxh3_128_digest(digests.numpy().tobytes())
    return _signed(int.from_bytes(told[:8], "big")), _signed(int.from_bytes(told[8:], "big"))


def _digest(tensor: torch.Tensor) -> int:
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    raw = local.detach().contiguous().view(-1).view(torch.uint8)
    if raw.device.type == "cpu":
        return _signed(xxhash.xxh3_64_intdigest(cast(Any, raw.numpy())))
    # On a device its own arithmetic is faster than copying: a sum of all bytes, each by its place in a word.
    whole = len(raw) // 8 * 8
    return int(raw[:whole].view(torch.int64).sum() + raw[whole:].sum())


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number
