"""Token buckets: what one object or namespace may cost, so that others' share is left to them."""

import time
from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")


class Bucket:
    """Holds ``burst`` tokens at most, and gets ``rate`` more each second."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._at = burst, time.monotonic()

    def _refill(self) -> None:
        now = time.monotonic()
        self._tokens, self._at = min(self._burst, self._tokens + (now - self._at) * self._rate), now

    def wait(self) -> float:
        """Seconds until a token is there."""
        self._refill()
        return max(0.0, (1.0 - self._tokens) / self._rate)

    def take(self, tokens: float = 1.0) -> bool:
        """Take tokens if there are as many."""
        self._refill()
        if self._tokens < tokens:
            return False
        self._tokens -= tokens
        return True

    def owe(self, tokens: float) -> float:
        """Take tokens that may not be there yet; seconds until they all are."""
        self._refill()
        self._tokens -= tokens
        return max(0.0, -self._tokens / self._rate)


class Buckets(Generic[K]):
    """A bucket for each key. Those of the keys used last are remembered; a forgotten one is full again."""

    def __init__(self, rate: float, burst: float, most: int = 4096) -> None:
        self._rate, self._burst, self._most = rate, burst, most
        self._buckets: OrderedDict[K, Bucket] = OrderedDict()

    def of(self, key: K) -> Bucket:
        bucket = self._buckets.pop(key, None) or Bucket(self._rate, self._burst)
        self._buckets[key] = bucket
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return bucket
