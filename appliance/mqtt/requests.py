"""Requests to a device and their answers, MQTT 5: pure. ``docs/mqtt.md`` is the text of record.

A request is hostile until judged: whoever may send one must not make the device say anything anywhere but on
``<prefix>/<device>/response/…``, nor the same thing twice, nor more than it can say in passing.
"""

import re
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from appliance.config import CommandName, Name
from appliance.errors import PeerError
from appliance.mqtt.link import Message, Received
from appliance.mqtt.topics import Topics
from appliance.text import printable

MAX_REQUEST_BYTES = 4 << 10
MAX_RESPONSE_TOPIC = 256
MAX_ERROR = 1024
"""Characters of an error that are told."""
REMEMBERED = 64
"""Requests of which a second copy is known …"""
REMEMBERED_SECONDS = 60.0
"""… for so long."""
BURST = 10
"""Requests that are taken at once …"""
PER_SECOND = 1.0
"""… and how many a second after that."""
MAX_LOG_SECONDS = 86_400

_PLACE = re.compile(r"[A-Za-z0-9_.:@-]+(?:/[A-Za-z0-9_.:@-]+)*")


class Arguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The payload of a request, JSON: a key that is not known is an error."""


class ReloadArguments(Arguments, frozen=True, kw_only=True):
    """None."""


class SnapshotArguments(Arguments, frozen=True, kw_only=True):
    camera: Name


class LogArguments(Arguments, frozen=True, kw_only=True):
    unit: Annotated[str, msgspec.Meta(min_length=1, max_length=80)]
    """``all``, a part of the appliance (``zipper``, ``mqtt``), or ``handler.NAME``."""
    level: Literal["debug", "info", "warning", "error"]
    seconds: Annotated[float, msgspec.Meta(gt=0, le=MAX_LOG_SECONDS)] | None = None
    """None: until the appliance is started again."""


class RestartArguments(Arguments, frozen=True, kw_only=True):
    handler: Name


ARGUMENTS: Mapping[CommandName, type[Arguments]] = {
    "reload": ReloadArguments,
    "snapshot": SnapshotArguments,
    "log": LogArguments,
    "restart": RestartArguments,
}


@dataclass(frozen=True, slots=True)
class ReturnAddress:
    """Where an answer goes. Made by :func:`return_address` alone."""

    topic: str
    correlation: bytes


@dataclass(frozen=True, slots=True)
class Request:
    """To be carried out, and answered; worth nothing after ``deadline`` (monotonic seconds, None: never)."""

    command: CommandName
    arguments: Arguments
    back: ReturnAddress
    deadline: float | None


@dataclass(frozen=True, slots=True)
class Refused:
    """To be answered with ``error``, no more."""

    command: str
    error: str
    back: ReturnAddress


@dataclass(frozen=True, slots=True)
class Ignored:
    """Not to be answered: ``reason`` is for the log."""

    reason: str


@dataclass(frozen=True, slots=True)
class Reply:
    payload: bytes
    content_type: str = "application/json"

    def to(self, back: ReturnAddress) -> Message:
        return Message(back.topic, self.payload, content_type=self.content_type, correlation=back.correlation)


def done(values: Mapping[str, Any] | None = None) -> Reply:
    return Reply(msgspec.json.encode({"ok": True, **(values or {})}))


def failed(error: str) -> Reply:
    text = printable(error)
    return Reply(
        msgspec.json.encode({"ok": False, "error": text if len(text) <= MAX_ERROR else text[:MAX_ERROR] + "…"})
    )


def return_address(topics: Topics, message: Received) -> ReturnAddress:
    """PeerError where the request cannot be answered: it names no topic, or one that is not for answers."""
    root, topic = f"{topics.root}/response/", message.response_topic
    if not topic:
        raise PeerError("it has no response topic: a request needs MQTT 5")
    place = topic.removeprefix(root)
    if place == topic or len(topic) > MAX_RESPONSE_TOPIC or not _PLACE.fullmatch(place):
        raise PeerError(f"it wants to be answered elsewhere than on {root}…, at most {MAX_RESPONSE_TOPIC} characters")
    return ReturnAddress(topic, message.correlation)


def decode_arguments(command: CommandName, payload: bytes) -> Arguments:
    """PeerError says what is wrong with the payload; an empty one is an empty object."""
    if len(payload) > MAX_REQUEST_BYTES:
        raise PeerError(f"a request of {len(payload)} bytes is over the limit of {MAX_REQUEST_BYTES}")
    try:
        return msgspec.json.decode(payload or b"{}", type=ARGUMENTS[command], strict=True)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError(f"not the arguments of {command}: {error}") from error


def _decode(command: str, message: Received, allowed: Collection[str]) -> tuple[CommandName, Arguments]:
    if message.retain:
        raise PeerError("a request must not be retained: it would come again at every connection")
    for known in ARGUMENTS:
        if known == command and known in allowed:
            return known, decode_arguments(known, message.payload)
    raise PeerError("not allowed: mqtt.commands of this device does not have it")


class Inbox:
    """Judges what comes; remembers the last requests and how many came lately."""

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self._commands = topics.command("")
        self._seen: OrderedDict[tuple[str, str, bytes], float] = OrderedDict()
        self._tokens = float(BURST)
        self._at: float | None = None
        self._busy = False

    def judge(self, message: Received, allowed: Collection[str], now: float) -> Request | Refused | Ignored:
        """What to do about a message on a topic of commands; ``now`` in monotonic seconds."""
        command = message.topic.removeprefix(self._commands)
        try:
            back = return_address(self._topics, message)
        except PeerError as error:
            return Ignored(str(error))
        if self._is_copy(message, now):
            return Ignored("it came before")
        before, self._busy = self._busy, not self._has_room(now)
        if self._busy:
            text = f"too many requests: {PER_SECOND:g} a second, {BURST} at once"
            return Ignored(text) if before else Refused(command, text, back)
        try:
            known, arguments = _decode(command, message, allowed)
        except PeerError as error:
            return Refused(command, str(error), back)
        return Request(known, arguments, back, None if message.expiry is None else now + max(1, message.expiry))

    def _is_copy(self, message: Received, now: float) -> bool:
        """Whether a request with this correlation came lately; without one nothing can be known."""
        while self._seen and (next(iter(self._seen.values())) <= now - REMEMBERED_SECONDS):
            self._seen.popitem(last=False)
        key = (message.topic, message.response_topic, message.correlation)
        if not message.correlation:
            return False
        if key in self._seen:
            return True
        self._seen[key] = now
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return False

    def _has_room(self, now: float) -> bool:
        if self._at is not None:
            self._tokens = min(float(BURST), self._tokens + (now - self._at) * PER_SECOND)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
