"""When a broker is asked once more for all metadata that it retains. Pure.

Retained messages come once for a subscription. What a broker lied about then, kept to itself or buried under junk
does not come again by itself when it has been mended; another subscription brings it.
"""

from appliance.backoff import Backoff

FIRST_ASK, LAST_ASK = 5.0, 600.0
"""Seconds until it is asked again while the box cannot go by what it has heard."""
CONTENT_SECONDS = 3600.0
"""Seconds until it is asked again though nothing is amiss: it may have kept news to itself."""


class Asking:
    """Time is an argument: monotonic seconds."""

    def __init__(self) -> None:
        self._waits = Backoff(FIRST_ASK, limit=LAST_ASK, jitter=0.5)
        self._content: bool | None = None
        self._at = 0.0

    def left(self, now: float, *, content: bool) -> float:
        """Seconds until it is time to ask; ``content``: the box has all that it knows of, and goes by it."""
        if content != self._content:
            self._content = content
            self._plan(now)
        return max(0.0, self._at - now)

    def asked(self, now: float) -> None:
        self._plan(now)

    def _plan(self, now: float) -> None:
        if self._content:
            self._waits.ok(now)
            self._at = now + CONTENT_SECONDS
        else:
            self._at = now + self._waits.failed(now)
