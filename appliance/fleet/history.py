"""What was desired before, so that a rollback knows. Pure.

It is a target of its own, signed with what is desired and never sent anywhere: nobody but the operator can say what a
rollback brings back.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec

from appliance.config import Name
from appliance.deploy.desired import Assignment
from appliance.errors import PeerError

HISTORY_TARGET = "history.json"
MAX_HISTORY_BYTES = 4 << 20
MAX_BEFORE = 8
"""Assignments that are remembered of each handler of each device or group."""

Was = Assignment | Literal["nothing", "none"]
"""What a document said of a handler: ``nothing``, so that weaker groups count, or ``none``, whatever they have."""
Before = Annotated[tuple[Was, ...], msgspec.Meta(max_length=MAX_BEFORE)]
"""The newest last."""


class History(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    v: Literal[1] = 1
    before: dict[str, dict[Name, Before]] = {}
    """By path of the desired document, then by handler."""

    def of(self, target: str, handler: str) -> tuple[Was, ...]:
        return self.before.get(target, {}).get(handler, ())

    def remembering(self, target: str, handler: str, before: tuple[Was, ...]) -> "History":
        """The same with something else about one handler; empty forgets it."""
        handlers = {**self.before.get(target, {}), handler: before[-MAX_BEFORE:]}
        kept = {name: each for name, each in handlers.items() if each}
        return History(before={path: each for path, each in {**self.before, target: kept}.items() if each})

    def returns(self) -> Iterator[tuple[str, Assignment]]:
        """(Handler, what a rollback would bring back)."""
        for handlers in self.before.values():
            for name, before in handlers.items():
                if isinstance(before[-1], Assignment):
                    yield name, before[-1]

    def shortened(self) -> "History":
        """The newest of each alone."""
        return History(
            before={path: {name: each[-1:] for name, each in of.items()} for path, of in self.before.items()}
        )


def encode_history(history: History) -> bytes:
    return msgspec.json.encode(history, order="sorted") + b"\n"


def decode_history(data: bytes) -> History:
    """PeerError for what is no history."""
    if len(data) > MAX_HISTORY_BYTES:
        raise PeerError(f"a history of {len(data)} bytes is over the limit of {MAX_HISTORY_BYTES}")
    try:
        return msgspec.json.decode(data, type=History, strict=True)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PeerError(f"not a history of desired states: {error}") from error
