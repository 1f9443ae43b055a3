"""When a picture is due: pure arithmetic on timestamps, the time of day is an argument."""

MAX_LAG = 0.5
"""Seconds; a reader that is later than this starts a new count instead of hurrying to catch up."""


class Pacer:
    """Plays pictures at the times they carry."""

    def __init__(self) -> None:
        self._start: float | None = None

    def delay(self, pts: float, now: float) -> float:
        """Seconds to wait at ``now`` (any steady clock) until the picture with timestamp ``pts`` is due."""
        if self._start is None or now - (self._start + pts) > MAX_LAG:
            self._start = now - pts
        return max(0.0, self._start + pts - now)


class Decimator:
    """Thins pictures out to at most ``fps`` per second by their timestamps; None keeps them all."""

    def __init__(self, fps: float | None) -> None:
        self._interval = 1 / fps if fps else 0.0
        self._due: float | None = None

    def keep(self, pts: float) -> bool:
        """Whether the picture with timestamp ``pts`` (seconds) is one of those to keep."""
        if not self._interval:
            return True
        if self._due is None or not -2 * self._interval < pts - self._due < self._interval:
            self._due = pts  # the first one, after a gap, or the timestamps started anew
        if pts < self._due - 0.05 * self._interval:  # a camera's clock trembles: 15 of 30 stay every other one
            return False
        self._due += self._interval  # not pts + interval: so the average rate is exact
        return True


class Timeline:
    """Turns a stream's own timestamps into seconds since its first picture, whatever they start at or lack."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        """Between pictures, where the stream does not say."""
        self._first: float | None = None
        self._offset = 0.0
        self._latest = -interval

    def at(self, stamp: float | None) -> float:
        """Seconds since the first picture for the stream's timestamp ``stamp`` (None: it has none)."""
        if stamp is None:
            self._latest += self._interval
        else:
            if self._first is None:
                self._first = stamp
            self._latest = self._offset + stamp - self._first
        return self._latest

    def restart(self) -> None:
        """The stream begins again, right after the latest picture."""
        self._first = None
        self._offset = self._latest + self._interval
