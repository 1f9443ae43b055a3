"""What came of one frame that was tried. Pure."""

from typing import Any

import msgspec

NOT_RUNNING = "unavailable"
"""Outcome of a frame for which there was no handler: it could not be started, or failed too often."""


class TriedResult(msgspec.Struct, frozen=True):
    """A frame that the handler emitted."""

    tag: int
    format: str
    bytes: int
    value: Any = None
    """What it says, as it would be published in JSON; None where it is neither CBOR nor JSON."""
    refused: str = ""
    """Why it would not be published."""


class Tried(msgspec.Struct, frozen=True):
    """One frame; times in microseconds."""

    frame: str
    """Name of the file it is, or of the video and its number therein."""
    outcome: str
    """``ok``, or the kind of the failure."""
    message: str
    backtrace: list[str]
    results: list[TriedResult]
    guest_us: int
    decode_us: int
    invoke_us: int
    wait_us: int
    """For the host beyond that: for pixels, and for the way there and back."""
    gas: int
    memory_bytes: int
