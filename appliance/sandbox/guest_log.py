"""What a handler says, in the log of the appliance; lines over its budget are told of as a number."""

import asyncio
import logging

from appliance.sandbox.messages import Log
from appliance.text import printable

DROPPED_SECONDS = 1.0
"""Dropped lines are told of at most so often."""


class GuestLog:
    """One handler's log; :meth:`close` tells what was dropped and not told of yet."""

    def __init__(self, handler: str) -> None:
        self.dropped = 0
        """Lines since the start."""
        self._log = logging.getLogger(f"handler.{handler}")
        self._untold = 0
        self._timer: asyncio.TimerHandle | None = None

    def say(self, line: Log) -> None:
        self._log.log(line.level, "event=guest_says text=%s", printable(line.text))

    def drop(self) -> None:
        """A line was over the budget."""
        self.dropped += 1
        self._untold += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(DROPPED_SECONDS, self._tell)

    def close(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._tell()

    def _tell(self) -> None:
        self._timer = None
        self._log.warning("event=guest_log_dropped lines=%d over=limits.log_lines_per_second", self._untold)
        self._untold = 0
