"""The zipper's end of a packet socket; :mod:`appliance.ipc.packets` is the child's, and the format of both."""

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Generic

from appliance.errors import PeerError
from appliance.ipc.packets import (
    MAX_MESSAGE_BYTES,
    PACKET_BYTES,
    Assembler,
    BlockingChannel,
    In,
    pack,
    socket_pair,
)

__all__ = ["Assembler", "AsyncChannel", "BlockingChannel", "pack", "socket_pair"]

MAX_QUEUED_BYTES = 32 << 20
"""What may wait for a child that does not read, before the child counts as broken."""


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

    @property
    def queued(self) -> int:
        """Bytes that the child has not taken yet."""
        return self._queued

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
            except ConnectionResetError:
                continue  # said once, when the child ended without reading all; what it wrote before still follows
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
            except (BrokenPipeError, ConnectionResetError):
                self._queue.clear()  # the child is gone; the reader takes what it wrote before, then ends
                self._queued = 0
            except OSError as error:
                self._end(error)
                return
            else:
                self._queued -= len(self._queue.popleft())
        self._loop.remove_writer(self._sock.fileno())

    def _end(self, error: Exception | None) -> None:
        if not self.closed:
            self.close()
            self._on_closed(error)
