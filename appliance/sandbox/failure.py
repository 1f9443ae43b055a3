"""What went wrong with a handler, as it is told, logged, published and kept. Pure."""

from typing import Annotated

import msgspec

from appliance.sandbox.messages import MAX_TRAP_TEXT, Backtrace
from appliance.sandbox.session import Fault

MAX_MESSAGE = 2 * MAX_TRAP_TEXT
"""What a guest's worker says of a failure, and what the zipper adds."""
MAX_FILE_NAME = 160

FAULTS = frozenset({"trap", "gas", "deadline", "memory", "crash", "forbidden", "protocol", "output", "budget"})
"""Failures that an honest handler does not have. ``error`` it may mean, and the others are not of its making."""


class Failure(msgspec.Struct, frozen=True):
    """One failure."""

    kind: Fault
    message: Annotated[str, msgspec.Meta(max_length=MAX_MESSAGE)]
    seq: int | None = None
    """Number of the frame in hand; None where there was none."""
    at_ns: int = 0
    """Wall-clock time, nanoseconds since 1970 (UTC)."""
    backtrace: Backtrace = []
    capsule: Annotated[str, msgspec.Meta(max_length=MAX_FILE_NAME)] = ""
    """Name of the file with the frames around it; empty where none was written."""
