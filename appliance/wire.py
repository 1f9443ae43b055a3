"""The wire format: frames and control messages as CBOR. Sans-IO: bytes in, values out.

The text of record is ``docs/wire.md`` with its schema ``docs/wire.cddl``. In short:

* a frame is ``[header: bstr .cbor {…}, payload: bstr]``, alone on a unidirectional stream that ends with it;
* the control stream is a sequence of ``bstr .cbor message``.

Both wrap CBOR in byte strings, so that every length is known, judged and bounded before anything is buffered
and the inner item is decoded once, whole, with nothing allowed to trail it.
"""

from typing import Annotated, Any

import cbor2
import msgspec

from appliance.cbor import decode_strict
from appliance.errors import PeerError
from appliance.frame import (
    FORMATS,
    MAX_META_ENTRIES,
    MAX_META_TEXT,
    MAX_MODEL_RUNS,
    MAX_SIDE,
    MAX_STAGES,
    MAX_TAG,
    NAME_PATTERN,
    Frame,
    ModelRun,
    Producer,
)

PROTOCOL_VERSION = 1
MAX_HEADER_BYTES = 8 << 10
MAX_PAYLOAD_BYTES = 8 << 20
"""A 4K JPEG is about 3 MB; a raw 1080p RGB picture 6.2 MB."""
FRAME_OVERHEAD = 1 + 5 + 5
"""The array's head and the two byte strings' heads."""
MAX_FRAME_BYTES = MAX_HEADER_BYTES + MAX_PAYLOAD_BYTES + FRAME_OVERHEAD
MAX_CONTROL_BYTES = 16 << 10
MAX_WINDOW = 64
"""Frames in flight that one peer may ask for or be granted."""
MAX_COUNTERS = 32

_ARRAY_OF_TWO = 0x82
_BYTE_STRING = 2
_MAX_HEAD = 9

Text = Annotated[str, msgspec.Meta(max_length=MAX_META_TEXT)]
Name = Annotated[str, msgspec.Meta(pattern=rf"^{NAME_PATTERN.pattern}\Z")]
Tag = Annotated[int, msgspec.Meta(ge=0, le=MAX_TAG)]
Tags = Annotated[tuple[Tag, ...], msgspec.Meta(max_length=64)]
Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Side = Annotated[int, msgspec.Meta(ge=0, le=MAX_SIDE)]
Window = Annotated[int, msgspec.Meta(ge=0, le=MAX_WINDOW)]


class WireError(PeerError):
    """The peer sent bytes that are not this protocol."""


class ProducerHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    handler: Name
    version: Text
    models: Annotated[tuple[ModelRun, ...], msgspec.Meta(max_length=MAX_MODEL_RUNS)] = ()


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What stands before a payload; judged before the payload is buffered."""

    tag: Tag
    source: Name
    seq: Count
    time: Count
    format: Text
    width: Side = 0
    height: Side = 0
    meta: Annotated[dict[Text, str | int | float | bool], msgspec.Meta(max_length=MAX_META_ENTRIES)] = {}
    spent: Annotated[dict[Text, Count], msgspec.Meta(max_length=MAX_STAGES)] = {}
    producer: ProducerHeader | None = None


# --- control messages --------------------------------------------------------------------------------------


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="type"):
    """Base of the control messages."""


class Hello(Message, frozen=True, tag="hello"):
    """First message of whoever connects."""

    version: Count
    role: Annotated[str, msgspec.Meta(max_length=16)]
    """``source``, ``handler`` (observes and emits) or ``sink`` (observes)."""
    name: Name
    credential: Annotated[str, msgspec.Meta(max_length=256)]
    observes: Tags = ()
    emits: Tags = ()
    lossless: bool = False
    """A source that wants every frame handled: credit returns only when every observer is done."""
    window: Window = 0
    """Frames an observer takes in flight."""

    def __repr__(self) -> str:  # the credential stays out of logs and tracebacks
        return f"Hello(role={self.role!r}, name={self.name!r})"


class Accept(Message, frozen=True, tag="accept"):
    version: Count
    device: Name
    credits: Window
    """Frames the peer may send before it gets a Credit."""
    max_payload: Count = MAX_PAYLOAD_BYTES


class Reject(Message, frozen=True, tag="reject"):
    """The connection is refused, or ended because of what the peer did."""

    code: Text
    """``version``, ``role``, ``credential``, ``tags``, ``protocol`` or ``credit``."""
    message: Text


class Credit(Message, frozen=True, tag="credit"):
    frames: Annotated[int, msgspec.Meta(ge=1, le=MAX_WINDOW)]


class Goaway(Message, frozen=True, tag="goaway"):
    """The sender is about to close an orderly connection; ``code`` is ``replaced``, ``shutdown`` or ``finished``."""

    code: Text
    message: Text = ""


class Report(Message, frozen=True, tag="report"):
    """A source's word on its camera."""

    state: Text
    counters: Annotated[dict[Text, Count], msgspec.Meta(max_length=MAX_COUNTERS)]
    detail: Text = ""
    memory_kb: Count = 0
    final: bool = False
    """Nothing more will come: the camera has ended."""


class Ping(Message, frozen=True, tag="ping"):
    nonce: Count


class Pong(Message, frozen=True, tag="pong"):
    nonce: Count


Control = Hello | Accept | Reject | Credit | Goaway | Report | Ping | Pong


# --- encoding ----------------------------------------------------------------------------------------------


def encode_head(length: int) -> bytes:
    """CBOR head of a byte string of ``length`` bytes (RFC 8949, section 3)."""
    if length < 24:
        return bytes((0x40 | length,))
    if length < 1 << 8:
        return bytes((0x58, length))
    if length < 1 << 16:
        return b"\x59" + length.to_bytes(2, "big")
    return b"\x5a" + length.to_bytes(4, "big")


def encode_frame(frame: Frame) -> bytes:
    """A frame's bytes; ValueError where the payload is over MAX_PAYLOAD_BYTES or the header over its bound."""
    producer = frame.producer
    header = Header(
        tag=frame.tag,
        source=frame.source,
        seq=frame.seq,
        time=frame.captured_ns,
        format=frame.format,
        width=frame.width,
        height=frame.height,
        meta=dict(frame.meta),
        spent=dict(frame.spent),
        producer=ProducerHeader(producer.handler, producer.version, producer.models) if producer else None,
    )
    inner = cbor2.dumps(msgspec.to_builtins(header))
    if len(inner) > MAX_HEADER_BYTES:
        raise ValueError(f"a frame header of {len(inner)} bytes is over the limit of {MAX_HEADER_BYTES}")
    if len(frame.payload) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"a payload of {len(frame.payload)} bytes is over the limit of {MAX_PAYLOAD_BYTES}")
    return b"".join((b"\x82", encode_head(len(inner)), inner, encode_head(len(frame.payload)), frame.payload))


def encode_control(message: Control) -> bytes:
    """A control message's bytes, ready for the control stream."""
    inner = cbor2.dumps(msgspec.to_builtins(message))
    if len(inner) > MAX_CONTROL_BYTES:
        raise ValueError(f"a control message of {len(inner)} bytes is over the limit of {MAX_CONTROL_BYTES}")
    return encode_head(len(inner)) + inner


# --- decoding ----------------------------------------------------------------------------------------------


def decode_item(data: bytes, kind: Any, what: str) -> Any:
    """One whole CBOR item as ``kind``, strictly; WireError says what is wrong with it."""
    try:
        value = decode_strict(data)
    except ValueError as error:
        raise WireError(f"malformed {what}: {error}") from error
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        raise WireError(f"malformed {what}: {error}") from error


def parse_head(data: bytes | bytearray, start: int) -> tuple[int, int] | None:
    """(length, bytes of the head) of the byte string at ``start``; None while the head is incomplete."""
    if start >= len(data):
        return None
    first = data[start]
    if first >> 5 != _BYTE_STRING:
        raise WireError(f"expected a byte string, got initial byte {first:#04x}")
    info = first & 0x1F
    if info < 24:
        return info, 1
    if info > 27:
        raise WireError("indefinite lengths are not accepted")
    size = 1 << (info - 24)
    if start + 1 + size > len(data):
        return None
    return int.from_bytes(data[start + 1 : start + 1 + size], "big"), 1 + size


class FrameReader:
    """Reads one frame from one stream. After :meth:`feed` has made ``header`` known, the caller may refuse it."""

    def __init__(self, max_payload: int = MAX_PAYLOAD_BYTES) -> None:
        self.header: Header | None = None
        self._max_payload = max_payload
        self._head = bytearray()
        self._parts: list[bytes] = []
        self._missing = -1  # bytes of payload still to come; -1: not known yet

    def feed(self, data: bytes, fin: bool) -> Frame | None:
        """Take the next bytes of the stream; the frame once it is whole and the stream has ended."""
        if self._missing < 0:
            data = self._feed_head(data)
        if self._missing >= 0:
            if len(data) > self._missing:
                raise WireError("bytes trail the frame")
            if data:
                self._parts.append(data)
                self._missing -= len(data)
        if not fin:
            return None
        if self._missing != 0 or self.header is None:
            raise WireError("the stream ended inside a frame")
        return self._frame(self.header)

    def _feed_head(self, data: bytes) -> bytes:
        """Buffer until both heads and the header are there; returns what belongs to the payload."""
        self._head += data
        head = self._head
        if head and head[0] != _ARRAY_OF_TWO:
            raise WireError(f"expected an array of two, got initial byte {head[0]:#04x}")
        outer = parse_head(head, 1)
        if outer is None:
            return b""
        length, used = outer
        if length > MAX_HEADER_BYTES:
            raise WireError(f"a header of {length} bytes is over the limit of {MAX_HEADER_BYTES}")
        end = 1 + used + length
        if len(head) < end:
            return b""
        if self.header is None:
            self.header = self._decode_header(bytes(head[1 + used : end]))
        payload = parse_head(head, end)
        if payload is None:
            return b""
        size, used = payload
        if size > self._max_payload:
            raise WireError(f"a payload of {size} bytes is over the limit of {self._max_payload}")
        self._missing = size
        rest = bytes(head[end + used :])
        self._head = bytearray()
        return rest

    @staticmethod
    def _decode_header(data: bytes) -> Header:
        header: Header = decode_item(data, Header, "frame header")
        if header.format not in FORMATS:
            raise WireError(f"unknown format {header.format!r}")
        return header

    def _frame(self, header: Header) -> Frame:
        producer = header.producer
        payload = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        return Frame(
            tag=header.tag,
            source=header.source,
            seq=header.seq,
            captured_ns=header.time,
            format=header.format,
            payload=payload,
            width=header.width,
            height=header.height,
            meta=header.meta,
            spent=header.spent,
            producer=Producer(producer.handler, producer.version, producer.models) if producer else None,
        )


class ControlReader:
    """Reads the control stream: feed bytes, get whole messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Control]:
        self._buffer += data
        messages: list[Control] = []
        start = 0
        while (head := parse_head(self._buffer, start)) is not None:
            length, used = head
            if length > MAX_CONTROL_BYTES:
                raise WireError(f"a control message of {length} bytes is over the limit of {MAX_CONTROL_BYTES}")
            end = start + used + length
            if len(self._buffer) < end:
                break
            messages.append(decode_item(bytes(self._buffer[start + used : end]), Control, "control message"))
            start = end
        del self._buffer[:start]
        return messages
