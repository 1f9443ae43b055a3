"""What many frames came to: the summary of a trial, and what a handler's limits should be. Pure."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from appliance.author.outcome import Tried
from appliance.manifest import MAX_DEADLINE_MS, MAX_GAS_MILLIONS, MAX_MEMORY_MB
from appliance.stats import Histogram

DEADLINE_ROOM = 10
"""Times the longest frame: the boxes are slower than what handlers are written on, and busy."""
LEAST_DEADLINE_MS = 100
"""A box that is busy lets a worker wait for the processor, and the clock runs on."""
GAS_ROOM = 3
"""Times the most instructions: they are the same on every machine, but pictures differ."""
MEMORY_ROOM = 1.5
_STEPS = (1, 2, 5, 10)


class Spread(msgspec.Struct, frozen=True):
    """Of one figure, over all frames that went well."""

    p50: int
    p95: int
    max: int


class Summary(msgspec.Struct, frozen=True):
    """How a trial went; times in microseconds."""

    frames: int
    failed: int
    results: int
    faults: dict[str, int]
    """Failed frames by kind."""
    guest_us: dict[str, int]
    """``p50``, ``p95``, ``p99``, ``count``."""
    decode_us: dict[str, int]
    invoke_us: dict[str, int]
    wait_us: dict[str, int]


class Needs(msgspec.Struct, frozen=True):
    """What a handler needs about one frame."""

    guest_us: Spread
    decode_us: Spread
    invoke_us: Spread
    wait_us: Spread
    gas: Spread
    memory_bytes: Spread


def needs_of(frames: Sequence[Tried]) -> Needs | None:
    """By the frames that went well; None where there is none."""
    good = [tried for tried in frames if tried.outcome == "ok"]
    if not good:
        return None
    return Needs(
        guest_us=spread([tried.guest_us for tried in good]),
        decode_us=spread([tried.decode_us for tried in good]),
        invoke_us=spread([tried.invoke_us for tried in good]),
        wait_us=spread([tried.wait_us for tried in good]),
        gas=spread([tried.gas for tried in good]),
        memory_bytes=spread([tried.memory_bytes for tried in good]),
    )


class Tally:
    """Counts frames one by one."""

    def __init__(self) -> None:
        self.frames = self.results = 0
        self.faults: Counter[str] = Counter()
        self._times = {name: Histogram() for name in ("guest", "decode", "invoke", "wait")}

    def see(self, tried: Tried) -> None:
        """Count one frame."""
        self.frames += 1
        self.results += len(tried.results)
        if tried.outcome != "ok":
            self.faults[tried.outcome] += 1
            return
        spent = {"guest": tried.guest_us, "decode": tried.decode_us, "invoke": tried.invoke_us, "wait": tried.wait_us}
        for name, microseconds in spent.items():
            self._times[name].record(microseconds)

    def summary(self) -> Summary:
        times = {f"{name}_us": histogram.summary() for name, histogram in self._times.items()}
        return Summary(
            frames=self.frames,
            failed=sum(self.faults.values()),
            results=self.results,
            faults=dict(self.faults),
            **times,
        )


def spread(figures: Sequence[int]) -> Spread:
    """Of at least one figure."""
    ordered = sorted(figures)

    def percentile(part: float) -> int:
        return ordered[max(1, math.ceil(len(ordered) * part)) - 1]

    return Spread(percentile(0.50), percentile(0.95), ordered[-1])


def suggest(needs: Needs) -> dict[str, int]:
    """``limits`` of a manifest with room to spare; ``gas`` only where it was counted."""
    limits = {
        "deadline_ms": _bounded(
            _rounded(max(LEAST_DEADLINE_MS, needs.guest_us.max * DEADLINE_ROOM / 1000)), MAX_DEADLINE_MS
        )
    }
    if needs.gas.max:
        limits["gas"] = _bounded(_rounded(needs.gas.max * GAS_ROOM / 1e6), MAX_GAS_MILLIONS)
    limits["memory_mb"] = _bounded(math.ceil(needs.memory_bytes.max * MEMORY_ROOM / (1 << 20)), MAX_MEMORY_MB)
    return limits


def as_toml(limits: Mapping[str, int]) -> str:
    return "\n".join(["[limits]", *(f"{key} = {value}" for key, value in limits.items())])


def _rounded(amount: float) -> int:
    """Up, to a figure that is easy to read: 1, 2 or 5 times a power of ten."""
    power = int(10 ** math.floor(math.log10(max(1.0, amount))))
    return next(step * power for step in _STEPS if step * power >= amount)


def _bounded(amount: int, limit: int) -> int:
    return max(1, min(amount, limit))
