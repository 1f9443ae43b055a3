"""What a publisher counts and how long things take: for the stats message, and for people who watch. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from appliance.mqtt.client import Connection
from appliance.mqtt.result import rfc3339
from appliance.stats import Histogram

MAX_STAGES_TIMED = 32


@dataclass(frozen=True, slots=True)
class PublisherStats:
    """Counts since the start, and what is true now."""

    results: int
    """Accepted into the queue."""
    published: int
    """Acknowledged by the broker, those found in the spool included."""
    spooled: int
    """Written to the spool."""
    lost: int
    """Dropped after they were accepted: the spool's cap, a damaged spool, or too large for the broker."""
    refused: Mapping[str, int]
    """Never accepted, by reason: ``malformed``, ``disk``, ``stopping``."""
    backlog: int
    """Not acknowledged yet, in memory or in the spool."""
    connection: Connection


class Latencies:
    """Microseconds by stage: since the start, and since they were last asked for."""

    def __init__(self) -> None:
        self.since_start: dict[str, Histogram] = {}
        self._before: dict[str, Histogram] = {}

    def record(self, stage: str, microseconds: int) -> None:
        """Count one duration; stages beyond ``MAX_STAGES_TIMED`` are left out."""
        histogram = self.since_start.get(stage)
        if histogram is None:
            if len(self.since_start) >= MAX_STAGES_TIMED:
                return
            histogram = self.since_start[stage] = Histogram()
        histogram.record(microseconds)

    def interval(self) -> dict[str, Histogram]:
        """What was recorded since the last call."""
        latency = {
            stage: histogram.since(self._before.get(stage, _NONE)) for stage, histogram in self.since_start.items()
        }
        self._before = {stage: histogram.copy() for stage, histogram in self.since_start.items()}
        return latency


def stats_document(
    device: str, now_ns: int, seconds: float, stats: PublisherStats, latency: Mapping[str, Histogram]
) -> dict[str, Any]:
    """The stats message as far as the publisher knows it; ``latency`` is of the last ``seconds``."""
    return {
        "v": 1,
        "device": device,
        "at": rfc3339(now_ns),
        "seconds": seconds,
        "results": stats.results,
        "published": stats.published,
        "spooled": stats.spooled,
        "lost": stats.lost,
        "refused": stats.refused,
        "backlog": stats.backlog,
        "reconnects": stats.connection.reconnects,
        "latency_us": {stage: histogram.summary() for stage, histogram in latency.items()},
    }


_NONE = Histogram()
