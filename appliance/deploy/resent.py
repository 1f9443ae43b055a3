"""When what has failed is worth another try before it is due: the fleet has been sent again. Pure."""

import math

AGAIN_SECONDS = 30.0
"""Not more often than this, whatever a broker sends."""
TIMESTAMP = "timestamp.json"
"""The metadata file that is sent last, when the broker has all the rest."""


class Resent:
    """A timestamp that comes, new or not, says so: the broker is back, or the operator has sent what was missing.

    Times are seconds of a monotonic clock.
    """

    def __init__(self) -> None:
        self._heard = False
        self._from = -math.inf

    @property
    def due_at(self) -> float:
        """When to try again; infinity where nothing was heard."""
        return self._from if self._heard else math.inf

    def heard(self, file: str) -> bool:
        """A metadata file has come. True where it is the one that counts."""
        self._heard |= file == TIMESTAMP
        return file == TIMESTAMP

    def due(self, now: float) -> bool:
        """Whether to try again now: once for all that was heard before."""
        if now < self.due_at:
            return False
        self._heard = False
        self._from = now + AGAIN_SECONDS
        return True
