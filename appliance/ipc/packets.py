"""Typed messages over a SEQPACKET socket pair.

A message is a msgspec struct, msgpack-encoded; the receiver decodes it against the union of the types it
accepts, so that whatever a hostile child sends is either one of them or an error. A message longer than one
packet is cut in pieces: the first byte of every packet says whether more follow.

This half is what a child needs, and imports no asyncio: the processes that run handlers stay small.
"""

import socket
from typing import Generic, TypeVar

import msgspec

from appliance.errors import PeerError

PACKET_BYTES = 64 << 10
"""Well under the default socket buffer (212,992 bytes), so that one packet always fits an empty one."""
MAX_MESSAGE_BYTES = 20 << 20
"""The largest is what a handler may emit about one frame: 16 MiB."""
_LAST, _MORE = b"\x00", b"\x01"

In = TypeVar("In")


class MessageTooLongError(ValueError):
    """What was to be sent is over MAX_MESSAGE_BYTES."""


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected packet sockets; the ends close on exec unless passed on."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def pack(message: object) -> list[bytes]:
    """The packets of one message; MessageTooLongError."""
    data = _ENCODER.encode(message)
    if len(data) > MAX_MESSAGE_BYTES:
        raise MessageTooLongError(f"a message of {len(data)} bytes is over the limit of {MAX_MESSAGE_BYTES}")
    if len(data) < PACKET_BYTES:
        return [_LAST + data]
    starts = range(0, len(data), PACKET_BYTES - 1)
    last = starts[-1]
    return [(_LAST if start == last else _MORE) + data[start : start + PACKET_BYTES - 1] for start in starts]


_ENCODER = msgspec.msgpack.Encoder()


class Assembler(Generic[In]):
    """Packets in, messages out; sans-IO. Raises PeerError on anything that is not a known message."""

    def __init__(self, accepts: object, limit: int = MAX_MESSAGE_BYTES) -> None:
        self._decoder: msgspec.msgpack.Decoder[In] = msgspec.msgpack.Decoder(accepts)
        self._parts: list[bytes] = []
        self._size = 0
        self._limit = limit

    def feed(self, packet: bytes) -> In | None:
        """The message that this packet completes, or None."""
        more = packet[:1]
        if more not in (_LAST, _MORE):
            raise PeerError("a packet without a valid first byte")
        if more == _MORE and len(packet) != PACKET_BYTES:
            raise PeerError("a piece of a message that is shorter than a packet")  # endless empty ones would pile up
        self._size += len(packet) - 1
        if self._size > self._limit:
            raise PeerError(f"a message over the limit of {self._limit} bytes")
        self._parts.append(packet[1:])
        if more == _MORE:
            return None
        data = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        try:
            return self._decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise PeerError(f"a malformed message: {error}") from error


class BlockingChannel(Generic[In]):
    """A child's end: plain blocking calls."""

    def __init__(self, sock: socket.socket, accepts: object) -> None:
        self._sock = sock
        self._assembler: Assembler[In] = Assembler(accepts)

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, message: object) -> None:
        for packet in pack(message):
            self._sock.send(packet)

    def receive(self) -> In | None:
        """The next message; None when the other end is closed."""
        while True:
            packet = self._sock.recv(PACKET_BYTES)
            if not packet:
                return None
            message = self._assembler.feed(packet)
            if message is not None:
                return message

    def close(self) -> None:
        self._sock.close()
