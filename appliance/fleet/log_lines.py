"""Lines of devices' logs as they come over MQTT: one JSON object a line. Pure."""

from collections.abc import Iterator

import msgspec

MAX_LOG_BYTES = 64 << 10
MAX_LINES = 256
"""In one message."""


class LogLine(msgspec.Struct, frozen=True):
    device: str
    at: str
    """RFC 3339, UTC."""
    level: str
    unit: str
    text: str


class _Line(msgspec.Struct, frozen=True):
    at: str
    level: str
    unit: str
    text: str


def log_lines(device: str, payload: bytes) -> Iterator[LogLine]:
    """Those in a message; what is none is left out."""
    for line in payload[:MAX_LOG_BYTES].split(b"\n", MAX_LINES)[:MAX_LINES]:
        try:
            said = msgspec.json.decode(line, type=_Line, strict=True)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        yield LogLine(device, said.at, said.level, said.unit, said.text)
