"""When a handler has failed so often that it is not run any more, and the record of it. Pure.

The record outlives restarts and power cuts. It is about one version of a handler as it ran: another version, or the
same with another module, settings, tags or models, has done nothing yet.
"""

from typing import Annotated

import msgspec

from appliance.sandbox.failure import FAULTS, Failure
from appliance.sandbox.session import Fault

QUARANTINE_STRIKES = 32
"""A second or two of a camera on which every frame fails, or twelve minutes of workers that die at once."""
FORGIVING_FRAMES = 19
"""So many good frames make up for one that failed: the balance is at 5 % of failing frames."""
MAX_RECORD_BYTES = 32 << 10
MAX_TEXT = 128


class Strikes:
    """A leaky score of failures: each adds one, and each good frame takes away a part of one.

    A handler that fails on more than 5 % of its frames comes to QUARANTINE_STRIKES sooner or later. One that fails
    now and then never does: with 2 % of failing frames it happens less than once in 10**20 frames.
    """

    def __init__(self) -> None:
        self._score = 0  # in parts of a strike, so that it stays exact

    @property
    def out(self) -> bool:
        """The handler is to be quarantined."""
        return self._score >= QUARANTINE_STRIKES * FORGIVING_FRAMES

    def failed(self, kind: Fault) -> None:
        if kind in FAULTS:
            self._score += FORGIVING_FRAMES

    def handled(self) -> None:
        """A frame went well."""
        self._score = max(0, self._score - 1)


Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]


class Quarantined(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which handler is in quarantine, and what it did last."""

    handler: Text
    version: Text
    module: Text
    """SHA-256 of its module, hexadecimal."""
    failure: Failure
    changes: Text = ""
    """SHA-256 that stands for what else an operator may change of it; empty: whatever that is."""

    def is_about(self, version: str, module: str, changes: str) -> bool:
        """Whether this is what is to run now."""
        return (self.version, self.module) == (version, module) and self.changes in ("", changes)


def encode_record(record: Quarantined) -> bytes:
    return msgspec.json.format(msgspec.json.encode(record), indent=1)


def decode_record(data: bytes) -> Quarantined:
    """ValueError where the record is not whole: a power cut, or a damaged disk."""
    try:
        return msgspec.json.decode(data, type=Quarantined)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not a record of a quarantine: {error}") from error
