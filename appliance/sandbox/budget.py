"""What a handler may do per second: token buckets that outlive its workers. Pure: the time is an argument."""

from collections.abc import Sequence

from appliance.manifest import Limits
from appliance.sandbox.messages import Emit


class Bucket:
    """``rate`` units a second on average, and a second's worth at once; ``now`` is in seconds."""

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self._left = rate
        self._filled = now

    def holds(self, amount: float, now: float) -> bool:
        """Whether so much may be taken now."""
        self._left = min(self.rate, self._left + max(0.0, now - self._filled) * self.rate)
        self._filled = max(self._filled, now)
        return amount <= self._left

    def take(self, amount: float, now: float) -> bool:
        """Take so much, or nothing and False where there is less."""
        if not self.holds(amount, now):
            return False
        self._left -= amount
        return True


class Budgets:
    """One handler's, by the keys of its manifest."""

    def __init__(self, limits: Limits, now: float) -> None:
        self._limits = limits
        self._emits = Bucket(limits.emits_per_second, now)
        self._bytes = Bucket(limits.emit_kb_per_second << 10, now)
        self._lines = Bucket(limits.log_lines_per_second, now)

    def emit(self, emits: Sequence[Emit], now: float) -> str:
        """Charge the frames emitted about one frame, all or none; what is exceeded, empty where nothing is."""
        size = sum(len(emit.payload) for emit in emits)
        if not self._emits.holds(len(emits), now):
            return f"it emits more than {self._limits.emits_per_second} frames per second (limits.emits_per_second)"
        if not self._bytes.take(size, now):
            return f"it emits more than {self._limits.emit_kb_per_second} KiB per second (limits.emit_kb_per_second)"
        self._emits.take(len(emits), now)
        return ""

    def log(self, now: float) -> bool:
        """Charge a line of log; False where it is one too many."""
        return self._lines.take(1, now)
