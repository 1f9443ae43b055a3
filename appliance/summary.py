"""How a run went, as numbers: what ``appliance run`` prints at its end."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec

from appliance.cbor import decode_strict
from appliance.frame import Frame
from appliance.mqtt.statistics import PublisherStats
from appliance.stats import Histogram
from appliance.zipper.core import Totals
from appliance.zipper.router import Observer
from appliance.zipper.server import SourceStatus

PERCENTILES = ("p50", "p95", "p99")


def document(frame: Frame) -> Any:
    """What a CBOR frame says; None for another format, and for what a remote peer emitted as CBOR and is none."""
    try:
        return decode_strict(frame.payload) if frame.format == "cbor" else None
    except ValueError:
        return None


class Verdicts:
    """Results compared with the truth that a camera knows of its own pictures (the synthetic one does)."""

    def __init__(self) -> None:
        self.checked = 0
        self.matched = 0

    def see(self, frame: Frame) -> None:
        """Count a result whose picture came with its truth and whose value has a ``label``."""
        truth = frame.meta.get("truth")
        if truth is None:
            return
        value = document(frame)
        if isinstance(value, dict) and "label" in value:
            self.checked += 1
            self.matched += value["label"] == truth


class Summary(msgspec.Struct, frozen=True):
    """The final object of ``appliance run --json``."""

    seconds: float
    captured: int
    """Pictures that the cameras gave."""
    dropped: dict[str, int]
    """Frames that were not handled, by cause (docs/mqtt.md names them)."""
    results: int
    """Results accepted for publishing."""
    published: int
    """Results that the broker acknowledged."""
    spooled: int
    """Results that wait on disk for the broker."""
    lost: int
    """Accepted results that nobody will ever see, and results refused by the publisher."""
    latency_ms: dict[str, dict[str, float]]
    """``total`` (capture to acknowledgement) and each stage: p50, p95, p99."""
    memory_mb: dict[str, float]
    """Proportional set size of each process, and their ``total``."""
    handlers: dict[str, str]
    """State of each handler at the end: ``failed`` is one that could not be started at all."""
    truth: dict[str, int] | None = None
    """``checked`` and ``matched``, where the camera knows what it showed."""


def summarise(
    *,
    captured: int,
    dropped: Mapping[str, int],
    stats: PublisherStats,
    latency: Mapping[str, Histogram],
    memory_kb: Mapping[str, int],
    verdicts: Verdicts,
    handlers: Mapping[str, str],
    seconds: float,
) -> Summary:
    memory = {name: round(size / 1024, 1) for name, size in memory_kb.items()}
    return Summary(
        seconds=round(seconds, 2),
        captured=captured,
        dropped=dict(dropped),
        results=stats.results,
        published=stats.published,
        spooled=stats.backlog,
        lost=stats.lost + sum(stats.refused.values()),
        latency_ms={stage: milliseconds(histogram) for stage, histogram in latency.items()},
        memory_mb={**memory, "total": round(sum(memory_kb.values()) / 1024, 1)},
        handlers=dict(handlers),
        truth={"checked": verdicts.checked, "matched": verdicts.matched} if verdicts.checked else None,
    )


def captured_by(sources: Mapping[str, SourceStatus]) -> int:
    """Pictures that the cameras gave: by their sources' last word, and no fewer than have come since."""
    said = [status.report.counters.get("captured", 0) if status.report else 0 for status in sources.values()]
    return sum(max(each, status.received) for each, status in zip(said, sources.values(), strict=True))


def dropped_by_cause(
    sources: Mapping[str, SourceStatus],
    observers: Mapping[str, Observer[Any]],
    totals: Totals,
    failed: Mapping[str, int],
) -> Counter[str]:
    """Frames that did not get where they should; ``failed`` are those that handlers came to no good with."""
    dropped: Counter[str] = Counter()
    for status in sources.values():
        for cause, count in status.report.counters.items() if status.report is not None else ():
            if cause.startswith("dropped_"):
                dropped[f"source_{cause.removeprefix('dropped_')}"] += count
    dropped["memory"] = totals.dropped_memory
    dropped.update({f"slot_{name}": observer.counters.dropped for name, observer in observers.items()})
    dropped.update({f"failed_{name}": count for name, count in failed.items()})
    return +dropped


def milliseconds(histogram: Histogram) -> dict[str, Any]:
    """p50, p95 and p99 of a histogram of microseconds."""
    return {name: round(histogram.percentile(int(name[1:]) / 100) / 1000, 3) for name in PERCENTILES}
