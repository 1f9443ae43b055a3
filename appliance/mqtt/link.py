"""One connection to a broker: aiomqtt (over paho-mqtt) does the protocol.

What it hides is taken from it here, because it matters: the reason in an acknowledgement (a broker whose
access list forbids a topic *acknowledges* the message, as refused), and the limits that the broker states when
it accepts. What it lacks is added: a bound on what a broker may send, and an end that leaves no socket open.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiomqtt
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from appliance.errors import PeerError
from appliance.mqtt.endpoint import Endpoint

log = logging.getLogger(__name__)
_SILENT = logging.getLogger(f"{__name__}.paho")
_SILENT.setLevel(logging.CRITICAL)
"""What paho has to say of a connection's end, :func:`explain` says in words for the operator."""

WINDOW = 32
"""Messages sent and not yet acknowledged, at most; fewer where the broker says so."""
WINDOW_BYTES = 4 << 20
MAX_INBOUND_BYTES = 64 << 10
"""A packet of the broker over this ends the connection before it is buffered."""
MAX_INBOUND_MESSAGES = 16
MAX_OUTBOUND_BYTES = 256 << 20
"""MQTT's own limit, where the broker states none."""
PUBLISH_OVERHEAD = 32
"""More than a PUBLISH packet adds to its topic and payload."""
KEEPALIVE_SECONDS = 20
CONNECT_SECONDS = 5.0
PROGRESS_SECONDS = 30.0
"""A broker that leaves a message unacknowledged for so long (or twice that) is taken for broken."""

FAILURE = 0x80
"""Reason codes from here up mean that something was not done (MQTT 5, section 2.4)."""
_PASSING = frozenset({FAILURE, 0x88, 0x89, 0x8B, 0x8D})
"""Reasons that pass by themselves: unspecified, unavailable, busy, shutting down, keep-alive timeout. Any other
is a refusal that somebody has to do something about."""
_CREDENTIALS = frozenset({0x86, 0x87})
_SESSION_TAKEN_OVER = 0x8E
_SOCKET_OPTIONS = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    # unacknowledged data for so long (ms) means that the broker's machine is gone
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 2 * KEEPALIVE_SECONDS * 1000),
)


@dataclass(frozen=True, slots=True)
class Message:
    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False

    @property
    def size(self) -> int:
        """Bytes of its packet, at most."""
        return len(self.topic) + len(self.payload) + PUBLISH_OVERHEAD


class RefusedError(aiomqtt.MqttError):
    """The broker acknowledged a message by refusing it."""

    def __init__(self, topic: str, reason: ReasonCode) -> None:
        super().__init__(f"{topic}: {reason}")
        self.topic = topic
        self.reason = reason


class Link(aiomqtt.Client):
    """One connection. The underscored names it uses are those of aiomqtt 2.5 and paho-mqtt 2; tests watch them."""

    def __init__(
        self,
        endpoint: Endpoint,
        identifier: str,
        will: Message,
        context: ssl.SSLContext | None,
        on_acknowledged: Callable[[Hashable], None],
    ) -> None:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.MaximumPacketSize = MAX_INBOUND_BYTES
        properties.ReceiveMaximum = MAX_INBOUND_MESSAGES
        super().__init__(
            endpoint.host,
            endpoint.port,
            username=endpoint.username or None,
            password=endpoint.password or None,
            logger=_SILENT,
            identifier=identifier,
            protocol=aiomqtt.ProtocolVersion.V5,
            will=aiomqtt.Will(will.topic, will.payload, will.qos, will.retain),
            timeout=CONNECT_SECONDS,
            keepalive=KEEPALIVE_SECONDS,
            clean_start=True,
            max_queued_incoming_messages=MAX_INBOUND_MESSAGES,
            max_inflight_messages=0,  # the window is ours
            properties=properties,
            tls_context=context,
            socket_options=_SOCKET_OPTIONS,
        )
        self._client.connect_timeout = CONNECT_SECONDS
        self._receive: Callable[[int], bytes] = self._client._sock_recv  # noqa: SLF001
        self._client._sock_recv = self._receive_bounded  # type: ignore[method-assign]  # noqa: SLF001
        self._on_acknowledged = on_acknowledged
        self._unacknowledged: dict[int, tuple[Hashable, Message]] = {}
        self._bytes = 0
        self._window = WINDOW
        self._usable = True
        self._accepted = False
        self._watching: asyncio.TimerHandle | None = None
        self.max_packet = MAX_OUTBOUND_BYTES

    @property
    def room(self) -> bool:
        return self._usable and len(self._unacknowledged) < self._window and self._bytes < WINDOW_BYTES

    def send(self, message: Message, token: Hashable) -> None:
        info = self._client.publish(message.topic, message.payload, message.qos, message.retain)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._usable = False  # the end of this connection is on its way
        elif message.qos:
            self._unacknowledged[info.mid] = token, message
            self._bytes += message.size
        self._write()

    def abort(self) -> None:
        """Close the socket if it still is open, as after a broker's nonsense."""
        if self._watching is not None:
            self._watching.cancel()
        if self._disconnected.done() and not self._disconnected.cancelled():
            self._disconnected.exception()  # asyncio complains of errors that nobody has looked at
        self._client._sock_close()  # noqa: SLF001

    async def __aenter__(self) -> Self:
        """Connect. The connecting thread cannot be interrupted: a cancellation waits for its time limit."""
        disconnected = self._disconnected
        entering = asyncio.ensure_future(super().__aenter__())
        try:
            await asyncio.shield(entering)
        except asyncio.CancelledError:
            await asyncio.wait([entering])
            if not entering.cancelled() and entering.exception() is None:
                await self.__aexit__(None, None, None)
            raise
        finally:
            del entering  # it holds the error, whose traceback holds this frame and a socket: a cycle
        # aiomqtt, which can be entered twice, forgets here that the connection ended as soon as it began
        self._disconnected = disconnected
        self._watch(None)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Disconnect in good order, if the broker still listens; leaves no socket open."""
        try:
            await super().__aexit__(exc_type, exc, tb)
        except aiomqtt.MqttError as error:
            log.debug("event=mqtt_no_goodbye error=%s", error)  # what ended the session matters more
        finally:
            self.abort()

    def _watch(self, before: tuple[Hashable, Message] | None) -> None:
        """Once a while: the oldest unacknowledged message must not be the one it was before."""
        oldest = next(iter(self._unacknowledged.values()), None)
        if oldest is not None and oldest is before:
            self._end(PeerError(f"has not acknowledged a message for {PROGRESS_SECONDS:.0f} s"))
        else:
            self._watching = self._loop.call_later(PROGRESS_SECONDS, self._watch, oldest)

    def _receive_bounded(self, bufsize: int) -> bytes:
        """Receive for paho, which asks for all that a packet still lacks, however much the broker announced."""
        if bufsize > MAX_INBOUND_BYTES:
            self._end(PeerError(f"sent a packet of {bufsize} bytes, over the limit of {MAX_INBOUND_BYTES}"))
            raise ConnectionError("packet too large")
        return self._receive(bufsize)

    def _write(self) -> None:
        try:
            self._client.loop_write()
        except Exception as error:  # noqa: BLE001 - as aiomqtt does: whatever it is, the connection is no more
            self._end(error)

    def _on_socket_register_write(self, client: Any, userdata: Any, sock: Any) -> None:
        if self._accepted:  # on the loop: no need to wake it
            self._loop.add_writer(sock.fileno(), self._write)
        else:
            super()._on_socket_register_write(client, userdata, sock)

    def _on_connect(
        self, client: Any, userdata: Any, flags: Any, reason_code: ReasonCode, properties: Properties | None = None
    ) -> None:
        self._accepted = True
        self._window = max(1, min(WINDOW, getattr(properties, "ReceiveMaximum", WINDOW)))
        self.max_packet = min(MAX_OUTBOUND_BYTES, getattr(properties, "MaximumPacketSize", MAX_OUTBOUND_BYTES))
        super()._on_connect(client, userdata, flags, reason_code, properties)

    def _on_disconnect(
        self, client: Any, userdata: Any, flags: Any, reason_code: ReasonCode, properties: Properties | None = None
    ) -> None:
        if not self._connected.done():  # aiomqtt would wait for its time limit
            self._connected.set_exception(aiomqtt.MqttCodeError(reason_code, "ended before it was accepted"))
        super()._on_disconnect(client, userdata, flags, reason_code, properties)

    def _on_publish(
        self,
        client: Any,  # noqa: ARG002
        userdata: Any,  # noqa: ARG002
        mid: int,
        reason_code: ReasonCode,
        properties: Properties,  # noqa: ARG002
    ) -> None:
        if mid not in self._unacknowledged:
            return
        token, message = self._unacknowledged.pop(mid)
        self._bytes -= message.size
        if reason_code.value >= FAILURE:
            self._end(RefusedError(message.topic, reason_code))
        else:  # not from within paho, which takes any exception for the end of the connection
            self._loop.call_soon(self._on_acknowledged, token)

    def _end(self, error: Exception) -> None:
        self._usable = False
        if self._connected.done() and not self._disconnected.done():
            self._disconnected.set_exception(error)


def explain(error: aiomqtt.MqttError, endpoint: Endpoint) -> tuple[str, bool]:
    """What ended a connection, in words for the operator, and whether only the operator can change it."""
    cause = error.__cause__ or error.__context__ or error
    broker = f"the broker at {endpoint}"
    match cause:
        case RefusedError():
            text = f"{broker} refuses messages on {cause.topic}: {cause.reason}; check its access list"
            return text, cause.reason.value not in _PASSING
        case aiomqtt.MqttCodeError() if isinstance(cause.rc, ReasonCode):
            return _explain_reason(cause.rc, broker), cause.rc.value not in _PASSING
        case ssl.SSLCertVerificationError():
            remedy = "check mqtt.ca_file, the host's name and the clock"
            return f"{broker} is not trusted: {cause.verify_message}; {remedy}", True
        case TimeoutError():
            text = f"{broker} does not answer"
        case OSError():
            text = f"{broker} cannot be reached: {error}"
        case PeerError():
            text = f"{broker} {cause}"
        case aiomqtt.MqttError():
            text = f"{broker} closed the connection"
        case _:
            text = f"{broker} sent what is not MQTT 5: {cause!r}"
    return text, False


def _explain_reason(reason: ReasonCode, broker: str) -> str:
    if reason.value in _CREDENTIALS:
        return f"{broker} refuses this device: {reason}; check mqtt.username and mqtt.password"
    if reason.value == _SESSION_TAKEN_OVER:
        return f"{broker} took another client for this one: give each device its own device.name"
    if reason.value == FAILURE:
        return f"the connection to {broker} was lost"
    return f"{broker} ended the connection: {reason}"
