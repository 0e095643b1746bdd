"""What a local run shows: a line that is kept up to date on a terminal, and lines one after the other elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from adaptrain_api.contracts.coordinator_api import Change, Progress
from adaptrain_api.text import printable
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

LINE_SECONDS = 10.0
"""Where there is no terminal, a line is written this often, and at each new epoch."""
LATEST = 4
"""Changes that are kept in view on a terminal."""


class Display:
    """Shows the state of a run, its changes, and the output of a script."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._shown = 0.0
        self._epoch: int | None = None
        self._changes: set[tuple[int, int]] = set()
        self._troubles: set[str] = set()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Take the terminal, if there is one."""
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, refresh_per_second=4) as self._live:
            try:
                yield
            finally:
                self._live = None

    def show(self, progress: Progress | None, line: str, troubles: list[str]) -> None:
        """Show what is; ``line`` tells the state in numbers, ``troubles`` what stands in the way."""
        changes = progress.recent_changes if progress is not None else []
        if self._live is not None:
            shown = [f"  {_told(change)}" for change in changes[-LATEST:]] + [f"  {one}" for one in troubles]
            self._live.update(Group(Text(line), *(Text(printable(one)) for one in shown)))
            return
        number = progress.number if progress is not None else 0
        for change in changes:
            if (number, change.count) not in self._changes:
                self._changes.add((number, change.count))
                self.say(_told(change))
        for trouble in troubles:
            if trouble not in self._troubles:
                self._troubles.add(trouble)
                self.say(trouble)
        epoch = progress.data_epoch if progress is not None else None
        now = time.monotonic()
        if now - self._shown >= LINE_SECONDS or epoch != self._epoch:
            self._shown, self._epoch = now, epoch
            self.say(line)

    def say(self, text: str) -> None:
        """Write lines that stay: above the one that is kept up to date, if there is one."""
        self._console.print(Text(printable(text)), soft_wrap=True)


def _told(change: Change) -> str:
    cost = f" (stall {change.stall * 1e3:.0f} ms)" if change.stall is not None else ""
    return f"{time.strftime('%H:%M:%S', time.localtime(change.time))} {change.message}{cost}"


class Follow:
    """Hands on what processes write to their logs, of one process at a time."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._read: dict[Path, int] = {}

    def look(self, log: Path) -> None:
        """Hand on the lines that are new in a log; what is no whole line yet waits for its end."""
        at = self._read.get(log, 0)
        try:
            with log.open("rb") as file:
                file.seek(at)
                found = file.read(1 << 20)
        except FileNotFoundError:
            return
        *lines, rest = found.split(b"\n")
        self._read[log] = at + len(found) - len(rest)
        if lines:
            self._say("\n".join(line.decode(errors="replace") for line in lines))
