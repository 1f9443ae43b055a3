"""Latency histograms of fixed size: pure, cheap to record, honest to about nine per cent."""

import math
from collections.abc import Iterable

BUCKETS_PER_OCTAVE = 8
"""Neighbouring buckets are 2 ** (1 / 8), about 9 %, apart: that is the error of a percentile."""
OCTAVES = 40
"""2 ** 40 microseconds are twelve days: what lay longer in a spool counts as that."""
_LAST = BUCKETS_PER_OCTAVE * OCTAVES - 1


class Histogram:
    """Durations in microseconds, counted in logarithmic buckets."""

    __slots__ = ("count", "counts")

    def __init__(self, counts: Iterable[int] = ()) -> None:
        self.counts = list(counts) or [0] * (_LAST + 1)
        self.count = sum(self.counts)

    def record(self, microseconds: int) -> None:
        """Count one duration; a negative one (the clock was set back) counts as 0."""
        bucket = int(math.log2(max(0, microseconds) + 1) * BUCKETS_PER_OCTAVE)
        self.counts[min(bucket, _LAST)] += 1
        self.count += 1

    def percentile(self, part: float) -> int:
        """The duration that ``part`` (0 to 1) of all lie under, as its bucket's upper edge; 0 for none."""
        wanted = max(1, math.ceil(self.count * part))
        seen = 0
        for bucket, count in enumerate(self.counts):
            seen += count
            if seen >= wanted:
                return _edge(bucket)
        return 0

    def summary(self) -> dict[str, int]:
        """``count``, ``p50``, ``p95`` and ``p99``, microseconds."""
        return {
            "count": self.count,
            "p50": self.percentile(0.50),
            "p95": self.percentile(0.95),
            "p99": self.percentile(0.99),
        }

    def copy(self) -> "Histogram":
        return Histogram(self.counts)

    def since(self, earlier: "Histogram") -> "Histogram":
        """What was recorded after ``earlier`` was copied from this histogram."""
        return Histogram(now - then for now, then in zip(self.counts, earlier.counts, strict=True))


def _edge(bucket: int) -> int:
    return max(0, math.ceil(2 ** ((bucket + 1) / BUCKETS_PER_OCTAVE)) - 2)
