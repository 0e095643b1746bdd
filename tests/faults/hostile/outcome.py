"""What came of one target."""

import resource
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

SLOW_SECONDS = 1.0
GROWTH_MEGABYTES = 200.0


@dataclass
class Outcome:
    target: str
    tries: int = 0
    escaped: Counter[str] = field(default_factory=Counter)
    """What no parser may let out, or what broke, and how often."""
    accepted: int = 0
    slowest: float = 0.0
    """Seconds of processor time for one try."""
    grown: float = 0.0
    """Megabytes that the parsing process, or any process of the job, has grown by."""
    ratio: float | None = None
    """99th percentile of the honest members' steps ÷ the median, where there are some."""
    calm: float | None = None
    """The same before the attack, on this machine."""

    @property
    def ok(self) -> bool:
        """Whether nothing escaped and nothing grew; the ratio is for who measures."""
        return self.tries > 0 and not self.escaped and self.grown < GROWTH_MEGABYTES

    @contextmanager
    def attempt(self, *expected: type[BaseException]) -> Iterator[None]:
        """One try: ``expected`` is how it is refused."""
        self.tries += 1
        began = time.process_time()
        try:
            yield
            self.accepted += 1
        except expected:
            pass
        except Exception as error:
            at = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{at.filename.rsplit('/', 1)[-1]}:{at.lineno}"
            self.escaped[f"{type(error).__name__} at {where}: {str(error)[:120]}"] += 1
        self.slowest = max(self.slowest, time.process_time() - began)

    def __str__(self) -> str:
        words = [
            f"{self.target}: {'ok' if self.ok else 'FAILED'}, {self.tries} tries, {self.accepted} accepted",
            f"slowest {self.slowest * 1e3:.0f} ms, grown by {self.grown:.0f} MB",
        ]
        if self.ratio is not None:
            words.append(f"honest steps: p99 = {self.ratio:.2f} x median (before: {self.calm or 0:.2f})")
        return ", ".join(words) + "".join(f"\n  {count} x {what}" for what, count in self.escaped.most_common(10))


def peak_megabytes() -> float:
    """Of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
