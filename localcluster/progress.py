"""Tells what is being done and for how long; never silent for more than five seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

_SILENCE = 4.5
_console = Console(stderr=True, highlight=False)


class _Steps:
    """The steps under way: a live display on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[int, tuple[str, float]] = {}
        self._next = 0
        self._ticker: threading.Thread | None = None
        self._live: Progress | None = None

    def begin(self, text: str) -> int:
        with self._lock:
            if _console.is_terminal:
                if self._live is None:
                    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
                    self._live = Progress(*columns, console=_console, transient=True)
                    self._live.start()
                step = int(self._live.add_task(text, total=None))
            else:
                self._next += 1
                step = self._next
                if self._ticker is None:
                    self._ticker = threading.Thread(target=self._tick, daemon=True)
                    self._ticker.start()
            self._running[step] = (text, time.monotonic())
        return step

    def end(self, step: int, *, ok: bool) -> None:
        with self._lock:
            text, began = self._running.pop(step)
            took = time.monotonic() - began
            if self._live is not None:
                self._live.remove_task(TaskID(step))
                if not self._running:
                    self._live.stop()
                    self._live = None
        say(f"{'✓' if ok else '✗'} {text} ({took:.1f} s)")

    def _tick(self) -> None:
        while True:
            time.sleep(_SILENCE)
            with self._lock:
                now = time.monotonic()
                lines = [f"  … {text} ({now - began:.0f} s)" for text, began in self._running.values()]
            for line in lines:
                say(line)


_steps = _Steps()


@contextmanager
def step(text: str) -> Iterator[None]:
    """Shows ``text`` and the time since, until the block ends. Steps may overlap."""
    number = _steps.begin(text)
    ok = False
    try:
        yield
        ok = True
    finally:
        _steps.end(number, ok=ok)


def say(text: str) -> None:
    """A line for people: on stderr, since stdout is for answers."""
    if _console.is_terminal:
        _console.print(text, markup=False, soft_wrap=True)
    else:
        print(text, file=sys.stderr, flush=True)
