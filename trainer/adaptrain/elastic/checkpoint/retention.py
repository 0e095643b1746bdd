"""Which checkpoints stay. Only one that was found or written good counts among those for which older ones go."""

from collections.abc import Callable
from contextlib import suppress

from adaptrain.elastic.checkpoint import file_format
from adaptrain.elastic.checkpoint.origin import Origin
from adaptrain.elastic.storage.directory import Saved, Storage


class Retention:
    """
    Args:
        keep: the newest ones that stay.
        keep_best: whether the first that has the best metric stays beside them.
    """

    def __init__(self, storage: Storage, origin: Origin, key: bytes | None, keep: int, keep_best: bool) -> None:
        self._storage = storage
        self._origin = origin
        self._key = key
        self._keep = keep
        self._keep_best = keep_best
        self.good: set[str] = set()
        """Names of checkpoints that this process has written, or read as a whole."""

    def apply(self, best_step: int, check: Callable[[], None]) -> None:
        """Remove what is not to be kept. What is of another training stays.

        Args:
            best_step: of the best metric so far; 0: none.
            check: is called before one is removed, and may raise.

        Raises:
            OSError: storage refused, or doesn't tell whether one is good: nothing was removed that may be needed.
        """
        saved = [one for one in self._storage.saved() if one.complete or self._storage.renames]
        first = sorted((one for one in saved if one.step >= best_step > 0), key=lambda one: one.step)
        best = next(filter(self._is_good, first), None) if self._keep_best else None
        kept = 0
        for one in saved:
            if kept >= self._keep:
                if one is not best and self._is_ours(one):
                    check()
                    self._storage.remove(one.name)
            elif self._is_good(one):
                kept += 1
        self.good &= {one.name for one in saved}

    def proved_bad(self, name: str) -> file_format.Corrupt | None:
        """What is wrong with a checkpoint, read twice; None: nothing.

        Raises:
            Mismatch: it is of another release's format.
            OSError: it can't be read now.
        """
        try:
            file_format.verify(self._storage, name, self._key)
        except file_format.Corrupt:
            try:
                file_format.verify(self._storage, name, self._key)
            except file_format.Corrupt as error:
                return error
        return None

    def _is_good(self, saved: Saved) -> bool:
        """Whether a checkpoint of this training is as it was written: read once, if another worker wrote it."""
        if saved.name not in self.good:
            with suppress(file_format.Mismatch):
                if self.proved_bad(saved.name) is None and self._is_ours(saved):
                    self.good.add(saved.name)
        return saved.name in self.good

    def _is_ours(self, saved: Saved) -> bool:
        """Whether a checkpoint may be removed: it is of this training, or nothing says of which."""
        try:
            return self._origin.differs(file_format.manifest_of(self._storage, saved.name, self._key)["of"]) is None
        except file_format.Corrupt:
            return True
        except file_format.Mismatch:
            return False
