"""Typed messages over a SEQPACKET socket pair.

A message is a msgspec struct, msgpack-encoded; the receiver decodes it against the union of the types it
accepts, so that whatever a hostile child sends is either one of them or an error. A message longer than one
packet is cut in pieces: the first byte of every packet says whether more follow.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from appliance.errors import PeerError

PACKET_BYTES = 64 << 10
"""Well under the default socket buffer (212,992 bytes), so that one packet always fits an empty one."""
MAX_MESSAGE_BYTES = 16 << 20
MAX_QUEUED_BYTES = 32 << 20
"""What may wait for a child that does not read, before the child counts as broken."""
_LAST, _MORE = b"\x00", b"\x01"

In = TypeVar("In")


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected packet sockets; the ends close on exec unless passed on."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def pack(message: object) -> list[bytes]:
    """The packets of one message."""
    data = _ENCODER.encode(message)
    if len(data) > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {len(data)} bytes is over the limit of {MAX_MESSAGE_BYTES}")
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


class AsyncChannel(Generic[In]):
    """The zipper's end: calls ``on_message`` for each message and ``on_closed`` once at the end.

    ``on_closed`` gets None for an orderly close, or the error that ended the channel. Sending never blocks:
    what the child does not take yet is queued up to MAX_QUEUED_BYTES.
    """

    BATCH = 16
    """Packets read per wake-up, so that one chatty child cannot starve the loop."""

    def __init__(
        self,
        sock: socket.socket,
        accepts: object,
        on_message: Callable[[In], None],
        on_closed: Callable[[Exception | None], None],
        limit: int = MAX_MESSAGE_BYTES,
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._assembler: Assembler[In] = Assembler(accepts, limit)
        self._on_message = on_message
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self.closed = False
        self._loop.add_reader(sock.fileno(), self._readable)

    def send(self, message: object) -> None:
        """Queue a message; silently nothing once the channel is closed (``on_closed`` has said so)."""
        if self.closed:
            return
        for packet in pack(message):
            self._queue.append(packet)
            self._queued += len(packet)
        if self._queued > MAX_QUEUED_BYTES:
            self._end(PeerError("the child does not read its messages"))
            return
        self._flush()

    def close(self) -> None:
        """Close from our side; ``on_closed`` is not called."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()

    def _readable(self) -> None:
        for _ in range(self.BATCH):
            try:
                packet = self._sock.recv(PACKET_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                self._end(error)
                return
            if not packet:
                self._end(None)
                return
            try:
                message = self._assembler.feed(packet)
            except PeerError as error:
                self._end(error)
                return
            if message is not None:
                self._on_message(message)
            if self.closed:
                return

    def _flush(self) -> None:
        while self._queue:
            try:
                self._sock.send(self._queue[0])
            except BlockingIOError:
                self._loop.add_writer(self._sock.fileno(), self._flush)
                return
            except OSError as error:
                self._end(error)
                return
            self._queued -= len(self._queue.popleft())
        self._loop.remove_writer(self._sock.fileno())

    def _end(self, error: Exception | None) -> None:
        if not self.closed:
            self.close()
            self._on_closed(error)
