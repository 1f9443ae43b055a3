"""When a handler's worker that died is started again. Pure: the time is an argument."""

FIRST_DELAY = 0.1
LAST_DELAY = 30.0
GOOD_FRAMES = 16
"""So many frames handled without a death in between, and earlier deaths are forgotten."""


class Restarts:
    """At once after the first death, then after 0.1 s, doubling to 30 s, until enough frames went well."""

    def __init__(self) -> None:
        self._deaths = 0
        self._good = 0

    def died(self, now: float) -> float:
        """A worker died at ``now`` (seconds): the earliest time to start the next."""
        self._deaths += 1
        self._good = 0
        if self._deaths == 1:
            return now
        doublings = min(self._deaths - 2, 16)  # far beyond the last delay, and no overflow
        return now + min(LAST_DELAY, FIRST_DELAY * float(1 << doublings))

    def handled(self) -> None:
        """A frame was handled."""
        self._good += 1
        if self._good >= GOOD_FRAMES:
            self._deaths = 0
