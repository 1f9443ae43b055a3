"""How long to wait before trying again: pure, the time is an argument."""

import random
from collections.abc import Callable


class Backoff:
    """Exponential delays between tries, for whatever is restarted or reconnected.

    ``first`` and ``limit`` are the shortest and longest delay in seconds, each delay is ``factor`` times the
    one before, and ``jitter`` (0 to 1) is the part of a delay left to chance. Failures are forgotten by what
    has worked for ``settle`` seconds, not by the first sign of life: a thing that starts and dies at once
    keeps its growing delays.
    """

    def __init__(
        self,
        first: float,
        factor: float = 2.0,
        limit: float = 30.0,
        jitter: float = 0.0,
        *,
        settle: float = 10.0,
        random: Callable[[], float] = random.random,
    ) -> None:
        self._first = first
        self._factor = factor
        self._limit = limit
        self._jitter = jitter
        self._settle = settle
        self._random = random
        self._delay = first
        self._well_since: float | None = None

    def ok(self, now: float) -> None:
        """It works at ``now`` (monotonic seconds), and is taken to go on working until :meth:`failed`."""
        if self._well_since is None:
            self._well_since = now

    def failed(self, now: float) -> float:
        """It failed at ``now``: seconds to wait before the next try, never more than ``limit``."""
        if self._well_since is not None and now - self._well_since >= self._settle:
            self._delay = self._first
        self._well_since = None
        delay = self._delay
        self._delay = min(self._limit, delay * self._factor)
        return delay * (1 - self._jitter * self._random())
