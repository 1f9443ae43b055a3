"""Whether a version of a handler is good enough: beside the live one, and in service. Pure.

Only what the handler did counts. Frames that nobody sent, and errors that it returns on purpose, say nothing.
"""

from dataclasses import dataclass, replace

MAX_FAULTS = 3
"""One may be the frame's and two bad luck; the third is the handler's."""
MAX_FAULT_SHARE = 0.005
"""Of the frames in service. Above it results have holes that people see; a rare picture that traps is below it."""
START_SECONDS = 120.0
"""For a worker and its models to be up: twice what one model may take (``inference/broker.py``)."""
MANY_TIMES_SLOWER = 4
"""Slower than the live one by so much is refused. Both run at once, on cores that one of them will have alone."""
ENOUGH_OFFERED = 30
"""Frames that both must have been offered before they are compared; a second of a camera."""
PACE_SECONDS = 2.0
"""Both are watched so long before they are compared: over a few frames chance decides who had the core."""
NOT_SERVING = frozenset({"failed", "quarantined"})
"""States of a handler in which no worker will handle a frame."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a handler. Counts are since it was started."""

    state: str
    """As in :class:`appliance.sandbox.host.HandlerStatus`."""
    handled: int
    """Frames that went well."""
    faults: int
    """Failures that an honest handler does not have, deaths of its worker included."""
    deadlines: int
    """Those of them that were missed deadlines."""
    in_a_row: int
    """Faults since the last frame that went well."""
    offered: int
    """Frames that the router had for it."""
    dropped: int
    """Frames of them that newer ones replaced, because it was not done with those before."""
    reason: str
    """What the last failure was."""
    hindered: bool = False
    """It was the device's: there was no process, or no memory, for it."""

    @property
    def kept_share(self) -> float:
        """The part of its frames that it had time for."""
        return (self.offered - self.dropped) / self.offered if self.offered else 1.0


@dataclass(frozen=True, slots=True)
class Pace:
    """What a canary and the version in service did in the same time, from when the canary was up."""

    canary: Sample
    live: Sample
    seconds: float


@dataclass(frozen=True, slots=True)
class Passed:
    """Good enough for service."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Not good enough; ``reason`` is for the operator."""

    reason: str


@dataclass(frozen=True, slots=True)
class Prevented:
    """The device did not let it begin: nothing is known of it."""

    reason: str


def since(now: Sample, before: Sample) -> Sample:
    """What was added to the counts between two looks; ``now`` itself where it counts from a later start."""
    counts = {name: getattr(now, name) - getattr(before, name) for name in _COUNTS}
    if min(counts.values()) < 0:
        return now
    return replace(now, **counts)


_COUNTS = ("handled", "faults", "deadlines", "offered", "dropped")


def judge_canary(
    sample: Sample, elapsed: float, frames: int, seconds: float, *, pace: Pace | None = None
) -> Passed | Failed | Prevented | None:
    """None: look again later.

    ``elapsed`` is the time in seconds since it was up, or, where it is not running, since it last was or began.
    ``pace`` is there where a version is in service. It passes after ``frames`` good frames, or after ``seconds``: not
    every handler has many frames to handle.
    """
    failed = _cannot_go_on(sample) or _too_faulty(sample) or _never_starts(sample, elapsed)
    if failed or sample.state != "running":
        return failed
    if pace is not None and (failed := _too_slow(pace)):
        return failed
    if sample.handled >= frames:
        return Passed()
    if elapsed < seconds:
        return None
    return _good_for_nothing(sample, elapsed) or Passed()


def judge_service(sample: Sample) -> Failed | None:
    """None: it may stay. Counts of ``sample`` are since it went into service."""
    if failed := _cannot_go_on(sample):
        return failed
    if sample.in_a_row >= MAX_FAULTS:
        return Failed(f"{sample.in_a_row} faults in a row in service{_last(sample)}")
    frames = sample.handled + sample.faults
    if sample.faults >= MAX_FAULTS and sample.faults > MAX_FAULT_SHARE * frames:
        return Failed(f"{_faults(sample)} in {frames} frames in service{_last(sample)}")
    return None


def _cannot_go_on(sample: Sample) -> Failed | None:
    return Failed(f"it is {sample.state}{_last(sample)}") if sample.state in NOT_SERVING else None


def _too_faulty(sample: Sample) -> Failed | None:
    return Failed(f"{_faults(sample)} as canary{_last(sample)}") if sample.faults >= MAX_FAULTS else None


def _never_starts(sample: Sample, elapsed: float) -> Failed | Prevented | None:
    if sample.state == "running" or elapsed < START_SECONDS:
        return None
    reason = f"its worker is not running after {START_SECONDS:g} s: {sample.state}{_last(sample)}"
    return Prevented(reason) if sample.hindered else Failed(reason)


def _good_for_nothing(sample: Sample, elapsed: float) -> Failed | None:
    """It returned an error for every frame."""
    taken = sample.offered - sample.dropped
    if sample.handled or taken < ENOUGH_OFFERED:
        return None
    return Failed(f"none of {taken} frames went well in {elapsed:.0f} s{_last(sample)}")


def _too_slow(pace: Pace) -> Failed | None:
    canary, live = pace.canary, pace.live
    if pace.seconds < PACE_SECONDS or min(canary.offered, live.offered) < ENOUGH_OFFERED:
        return None
    if canary.kept_share * MANY_TIMES_SLOWER >= live.kept_share:
        return None
    return Failed(
        f"it keeps up with {canary.kept_share:.0%} of its frames, the version in service with {live.kept_share:.0%}"
    )


def _faults(sample: Sample) -> str:
    missed = f" ({sample.deadlines} missed deadlines)" if sample.deadlines else ""
    return f"{sample.faults} faults{missed}"


def _last(sample: Sample) -> str:
    return f"; the last: {sample.reason}" if sample.reason else ""
