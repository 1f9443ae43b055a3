"""Waiting, as WASI has it, where nobody can wait: files are always ready, and clocks jump. Pure."""

from collections.abc import Callable, Sequence

from appliance.sandbox.abi.wasi_files import FileSystem
from appliance.sandbox.abi.wasi_types import (
    CLOCK_ABSOLUTE,
    EVENT,
    EVENT_CLOCK,
    EVENT_READ,
    EVENT_WRITE,
    SUBSCRIPTION,
    Right,
    WasiErrno,
    WasiError,
)

Clock = Callable[[int], int]
"""Number of a clock -> its time in ns; raises WasiError for one there is not."""


def poll(subscriptions: Sequence[bytes], files: FileSystem, clock: Clock) -> tuple[list[bytes], int]:
    """(events, ns until the first of them): what is ready now, or else what will be first.

    The caller lets its clocks jump by that time: a frame has none to be slept away. Raises WasiError for a kind of
    subscription there is not.
    """
    events: list[bytes] = []
    waits: list[tuple[int, int]] = []
    for subscription in subscriptions:
        user, kind, which, timeout, _precision, flags = SUBSCRIPTION.unpack(subscription)
        if kind in (EVENT_READ, EVENT_WRITE):
            events.append(_ready(user, kind, which, files))
        elif kind == EVENT_CLOCK:
            try:
                waits.append((_remaining(clock(which), timeout, flags), user))
            except WasiError as error:
                events.append(EVENT.pack(user, error.errno, kind, 0, 0))
        else:
            raise WasiError(WasiErrno.INVAL)
    first = 0 if events else min(wait for wait, _ in waits)
    due = [EVENT.pack(user, WasiErrno.SUCCESS, EVENT_CLOCK, 0, 0) for wait, user in waits if wait <= first]
    return events + due, first


def _remaining(now: int, timeout: int, flags: int) -> int:
    if flags & ~CLOCK_ABSOLUTE:
        raise WasiError(WasiErrno.INVAL)
    return max(0, timeout - now) if flags & CLOCK_ABSOLUTE else timeout


def _ready(user: int, kind: int, number: int, files: FileSystem) -> bytes:
    try:
        descriptor = files.get(number)
        descriptor.require(Right.POLL_FD_READWRITE)
    except WasiError as error:
        return EVENT.pack(user, error.errno, kind, 0, 0)
    return EVENT.pack(user, WasiErrno.SUCCESS, kind, descriptor.left() if kind == EVENT_READ else 0, 0)
