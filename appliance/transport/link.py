"""One QUIC connection as both ends see it: control messages and frames instead of streams and bytes."""

import asyncio
import logging
import socket
from typing import Protocol, cast

from aioquic.asyncio.protocol import QuicConnectionProtocol, QuicStreamHandler
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import NetworkAddress, QuicConnection
from aioquic.quic.packet import QuicErrorCode

from appliance.errors import PeerError
from appliance.frame import Frame
from appliance.transport.flow import WINDOW, bound_receive_memory
from appliance.wire import (
    MAX_FRAME_BYTES,
    Control,
    ControlReader,
    FrameReader,
    Header,
    Ping,
    Pong,
    Reject,
    encode_control,
    encode_frame,
)

log = logging.getLogger(__name__)

ALPN = "appliance/1"
CONTROL_STREAM = 0
LOOPBACK_DATAGRAM = 16_000
"""Measured: a 50 KB frame takes 0.5 ms instead of 3.5-7; aioquic breaks above 16,383 (a two-byte length)."""
NETWORK_DATAGRAM = 1200
SOCKET_BUFFER = 4 << 20
"""Asked of the kernel, which may grant less."""
IDLE_SECONDS = 10.0
PING_SECONDS = 3.0
ACK_SECONDS = 0.002
"""An acknowledgement may wait so long for company; QUIC allows 25 ms (RFC 9000, 18.2)."""
ERROR_CODE = 0x100
"""QUIC application error of every close that is somebody's fault; the reason phrase says what."""
_UNIDIRECTIONAL = 2


def is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def quic_configuration(host: str, *, is_client: bool) -> QuicConfiguration:
    """What both ends share; flow control beyond these values is bounded in ``flow.py``."""
    return QuicConfiguration(
        is_client=is_client,
        alpn_protocols=[ALPN],
        idle_timeout=IDLE_SECONDS,
        max_datagram_size=LOOPBACK_DATAGRAM if is_loopback(host) else NETWORK_DATAGRAM,
        max_stream_data=MAX_FRAME_BYTES,
    )


def enlarge_buffers(sock: socket.socket) -> None:
    """Bursts of 16 KB datagrams overflow the kernel's default buffers."""
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)


class Session(Protocol):
    """What a link reports to. Every method may raise PeerError: the link then rejects the peer and closes."""

    def opened(self, link: "Link") -> None: ...
    def control_received(self, message: Control) -> None: ...
    def frame_announced(self, header: Header) -> None:
        """The header is known, the payload is not: the moment to refuse."""

    def frame_received(self, frame: Frame) -> None: ...
    def closed(self, reason: str) -> None:
        """Called once, also for a link that never opened."""


class Link(QuicConnectionProtocol):
    """Sans policy: who may say what when is the session's business."""

    def __init__(self, quic: QuicConnection, session: Session, stream_handler: QuicStreamHandler | None = None) -> None:
        super().__init__(quic, stream_handler)
        self._session = session
        self._window = bound_receive_memory(quic)
        self._control = ControlReader()
        self._can_answer = quic.configuration.is_client
        """The client opens the control stream; before that there is nothing to answer on."""
        self._frames: dict[int, FrameReader] = {}
        self._open = False
        self._down = False
        self._late: asyncio.TimerHandle | None = None
        self.settled = asyncio.Event()
        """The handshake has succeeded or failed."""

    # --- sending ---------------------------------------------------------------------------------------------

    def send_control(self, message: Control) -> None:
        if not self._down:
            self._quic.send_stream_data(CONTROL_STREAM, encode_control(message))
            self._transmit_soon()

    def send_frame(self, frame: Frame) -> None:
        """One frame on a stream of its own. There is no other backpressure than the credits both sides keep."""
        if not self._down:
            stream = self._quic.get_next_available_stream_id(is_unidirectional=True)
            self._quic.send_stream_data(stream, encode_frame(frame), end_stream=True)
            self._transmit_soon()

    def trust(self) -> None:
        """The peer is accepted: let it send whole frames."""
        self._window.window = WINDOW

    def reject(self, code: str, message: str) -> None:
        """Tell the peer what it did wrong, then close."""
        if not self._down:
            if self._can_answer:
                self.send_control(Reject(code, message[:200]))
                self.transmit()
            self.close(ERROR_CODE, f"{code}: {message}"[:200])

    def close(self, error_code: int = QuicErrorCode.NO_ERROR, reason_phrase: str = "") -> None:
        """Close from our side. The session hears of it at once, not after QUIC's closing period."""
        super().close(error_code, reason_phrase)
        self._lost(reason_phrase or "closed by us")

    def transmit(self) -> None:
        """Send what is due, acknowledgements with it."""
        if self._late is not None:
            self._late.cancel()
            self._late = None
        super().transmit()

    # --- receiving -------------------------------------------------------------------------------------------

    def datagram_received(self, data: bytes | str, addr: NetworkAddress) -> None:
        """Take a datagram; where nothing else is to be sent, its acknowledgement waits for others to join it.

        aioquic's own shell answers every datagram with one: four for a frame of 50 KB, each a system call and a
        wake-up on both sides.
        """
        self._quic.receive_datagram(cast("bytes", data), addr, now=self._loop.time())
        self._process_events()
        if not self._open:
            self.transmit()
        elif self._transmit_task is None and self._late is None:
            self._late = self._loop.call_later(ACK_SECONDS, self.transmit)

    def quic_event_received(self, event: events.QuicEvent) -> None:
        if isinstance(event, events.ConnectionTerminated):
            self._lost(event.reason_phrase or f"error {event.error_code}")
            return
        if self._down:
            return
        try:
            self._dispatch(event)
        except PeerError as error:
            log.warning("event=protocol_error peer=%s error=%s", self._quic.get_peer_address(), error)
            self.reject(getattr(error, "code", "protocol"), str(error))

    def _dispatch(self, event: events.QuicEvent) -> None:
        if isinstance(event, events.StreamDataReceived):
            if event.stream_id == CONTROL_STREAM:
                self._can_answer = True
                self._control_data(event.data, ended=event.end_stream)
            elif event.stream_id & _UNIDIRECTIONAL:
                self._frame_data(event.stream_id, event.data, fin=event.end_stream)
            else:
                raise PeerError("only stream 0 is bidirectional")
        elif isinstance(event, events.StreamReset):
            if event.stream_id == CONTROL_STREAM:
                raise PeerError("the control stream was reset")
            self._frames.pop(event.stream_id, None)
        elif isinstance(event, events.HandshakeCompleted):
            self._open = True
            self.settled.set()
            self._session.opened(self)

    def _control_data(self, data: bytes, *, ended: bool) -> None:
        for message in self._control.feed(data):
            if isinstance(message, Ping):
                self.send_control(Pong(message.nonce))
            elif not isinstance(message, Pong):
                self._session.control_received(message)
        if ended:
            raise PeerError("the control stream ended")

    def _frame_data(self, stream: int, data: bytes, *, fin: bool) -> None:
        reader = self._frames.get(stream)
        if reader is None:
            reader = self._frames[stream] = FrameReader()
        known = reader.header is not None
        frame = reader.feed(data, fin)
        if not known and reader.header is not None:
            self._session.frame_announced(reader.header)
        if fin:
            del self._frames[stream]
        if frame is not None:
            self._session.frame_received(frame)

    def _lost(self, reason: str) -> None:
        if not self._down:
            self._down = True
            self.settled.set()
            self._frames.clear()
            self._session.closed(reason)

    def error_received(self, error: Exception) -> None:
        """The operating system says that nobody listens there; QUIC's own timers decide what follows."""
        log.debug("event=udp_error error=%s", error)

    @property
    def down(self) -> bool:
        """The connection has ended."""
        return self._down

    @property
    def peer(self) -> str:
        """Address of the other end, for logs."""
        address = cast("tuple[object, ...] | None", self._quic.get_peer_address())
        return f"{address[0]}:{address[1]}" if address else "unknown"
