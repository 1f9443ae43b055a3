"""One connection to a broker: aiomqtt (over paho-mqtt) does the protocol.

What it hides is taken from it here, because it matters: the reason in an acknowledgement (a broker whose
access list forbids a topic *acknowledges* the message, as refused), and the limits that the broker states when
it accepts. What it lacks is added: a bound on what a broker may send, and an end that leaves no socket open. Its queue
of messages, which drops what does not fit, is not used: each message is handed on as it comes.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiomqtt
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from appliance.errors import PeerError
from appliance.mqtt.endpoint import Endpoint
from appliance.mqtt.reasons import FAILURE, RefusedError

log = logging.getLogger(__name__)
_SILENT = logging.getLogger(f"{__name__}.paho")
_SILENT.setLevel(logging.CRITICAL)
"""What paho has to say of a connection's end, :func:`appliance.mqtt.reasons.explain` says in words for the operator."""

WINDOW = 32
"""Messages sent and not yet acknowledged, at most; fewer where the broker says so."""
WINDOW_BYTES = 4 << 20
MAX_INBOUND_BYTES = 64 << 10
"""A packet of the broker over this ends the connection before it is buffered."""
MAX_INBOUND_MESSAGES = 16
"""Of the broker's, begun and not done with: of QoS 2, which nobody here has asked for."""
RECEIVE_MAXIMUM = 64
"""Messages of QoS 1 that the broker may send before the first is acknowledged, each of which is done with at once: a
download's window."""
MAX_OUTBOUND_PACKETS = 4096
"""That wait to be written. A broker that sends and does not read what it is answered is left."""
MAX_TOPIC_BYTES = 1024
"""Of a message that comes, and of the topic that it asks to be answered on; what is longer is dropped."""
MAX_CORRELATION_BYTES = 256
BATCH = 8
"""Filters in one packet: brokers that take only small ones take these."""
MAX_OUTBOUND_BYTES = 256 << 20
"""MQTT's own limit, where the broker states none."""
PUBLISH_OVERHEAD = 32
"""More than a PUBLISH packet adds to its topic, payload and properties."""
KEEPALIVE_SECONDS = 20
CONNECT_SECONDS = 5.0
PROGRESS_SECONDS = 30.0
"""A broker that leaves a message unacknowledged for so long (or twice that) is taken for broken."""

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
    content_type: str = ""
    correlation: bytes = b""
    """What the request had, where this answers one."""

    @property
    def size(self) -> int:
        """Bytes of its packet, at most."""
        return len(self.topic) + len(self.payload) + len(self.content_type) + len(self.correlation) + PUBLISH_OVERHEAD


@dataclass(frozen=True, slots=True)
class Received:
    """A message that was subscribed to."""

    topic: str
    payload: bytes
    retain: bool = False
    """Published as a retained one, whether it comes fresh or from the broker's memory."""
    response_topic: str = ""
    correlation: bytes = b""
    expiry: int | None = None
    """Seconds that it is still of use; None: for ever."""


class Link(aiomqtt.Client):
    """One connection. The underscored names it uses are those of aiomqtt 2.5 and paho-mqtt 2; tests watch them."""

    def __init__(
        self,
        endpoint: Endpoint,
        identifier: str,
        will: Message | None,
        context: ssl.SSLContext | None,
        on_acknowledged: Callable[[Hashable], None],
        *,
        on_message: Callable[[Received], None] | None = None,
        on_subscribed: Callable[[str, ReasonCode], None] | None = None,
        on_refused: Callable[[RefusedError], None] | None = None,
    ) -> None:
        """All are called on the loop, never from within paho. ``on_message`` may raise: :meth:`ended` raises it again.

        ``on_subscribed`` gets each filter with the broker's answer. A message that the broker refuses ends the
        connection, unless there is ``on_refused`` to hear of it, whose messages count as acknowledged then.
        """
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.MaximumPacketSize = MAX_INBOUND_BYTES
        properties.ReceiveMaximum = RECEIVE_MAXIMUM
        super().__init__(
            endpoint.host,
            endpoint.port,
            username=endpoint.username or None,
            password=endpoint.password or None,
            logger=_SILENT,
            identifier=identifier,
            protocol=aiomqtt.ProtocolVersion.V5,
            will=aiomqtt.Will(will.topic, will.payload, will.qos, will.retain) if will else None,
            timeout=CONNECT_SECONDS,
            keepalive=KEEPALIVE_SECONDS,
            clean_start=True,
            max_inflight_messages=0,  # the window is ours
            properties=properties,
            tls_context=context,
            socket_options=_SOCKET_OPTIONS,
        )
        self._client.connect_timeout = CONNECT_SECONDS
        self._receive: Callable[[int], bytes] = self._client._sock_recv  # noqa: SLF001
        self._client._sock_recv = self._receive_bounded  # type: ignore[method-assign]  # noqa: SLF001
        self._on_acknowledged = on_acknowledged
        self._received = on_message or _unasked
        self._on_subscribed = on_subscribed
        self._on_refused = on_refused
        self._defect: Exception | None = None
        self._unacknowledged: dict[int, tuple[Hashable, Message]] = {}
        self._asked: dict[int, list[str]] = {}  # to be subscribed or unsubscribed, and not answered
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
        properties = _properties(message)
        info = self._client.publish(message.topic, message.payload, message.qos, message.retain, properties)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._usable = False  # the end of this connection is on its way
        elif message.qos:
            self._unacknowledged[info.mid] = token, message
            self._bytes += message.size
        self._write()

    def ask_for(self, filters: Iterable[str]) -> None:
        """Ask for messages of these filters, at most QoS 1: first those retained, then each as it is published."""
        options = SubscribeOptions(qos=1, retainAsPublished=True)
        for some in _batches(filters):
            self._ask(some, self._client.subscribe([(each, options) for each in some]))

    def leave(self, filters: Iterable[str]) -> None:
        for some in _batches(filters):
            self._ask(some, self._client.unsubscribe(some))

    def _ask(self, filters: list[str], result: tuple[MQTTErrorCode, int | None]) -> None:
        code, message_id = result
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS or message_id is None:
            self._usable = False
        else:
            self._asked[message_id] = filters
        self._write()

    async def ended(self, seconds: float | None = None) -> None:
        """Wait for the end of the connection, and raise it: MqttError, or what ``on_message`` raised.

        Returns where it has not come within ``seconds``.
        """
        await asyncio.wait([self._disconnected], timeout=seconds)
        if self._defect is not None:
            raise self._defect
        if self._disconnected.done():
            raise aiomqtt.MqttError("the connection has ended") from self._disconnected.exception()

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
        self._watch()
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

    def _watch(self, message_before: object = None, asked_before: object = None) -> None:
        """Once a while: what has waited longest for an answer must not be what it was before."""
        message = next(iter(self._unacknowledged.values()), None)
        asked = next(iter(self._asked.values()), None)
        if message is not None and message is message_before:
            self._end(PeerError(f"has not acknowledged a message for {PROGRESS_SECONDS:.0f} s"))
        elif asked is not None and asked is asked_before:
            self._end(PeerError(f"has not answered a subscription for {PROGRESS_SECONDS:.0f} s"))
        else:
            self._watching = self._loop.call_later(PROGRESS_SECONDS, self._watch, message, asked)

    def _receive_bounded(self, bufsize: int) -> bytes:
        """Receive for paho, which asks for all that a packet still lacks, however much the broker announced."""
        if bufsize > MAX_INBOUND_BYTES:
            self._end(PeerError(f"sent a packet of {bufsize} bytes, over the limit of {MAX_INBOUND_BYTES}"))
            raise ConnectionError("packet too large")
        if len(self._client._in_messages) > MAX_INBOUND_MESSAGES:  # noqa: SLF001 - QoS 2: paho keeps any number
            self._end(PeerError(f"sent more than {MAX_INBOUND_MESSAGES} messages without finishing one"))
            raise ConnectionError("too many messages")
        if len(self._client._out_packet) > MAX_OUTBOUND_PACKETS:  # noqa: SLF001 - each message it sends is acknowledged
            self._end(PeerError("sends and does not read"))
            raise ConnectionError("too many answers")
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
        refused = RefusedError(message.topic, reason_code) if reason_code.value >= FAILURE else None
        if refused and not self._on_refused:
            self._end(refused)
            return
        if refused and self._on_refused:
            self._loop.call_soon(self._on_refused, refused)
        # not from within paho, which takes any exception for the end of the connection
        self._loop.call_soon(self._on_acknowledged, token)

    def _on_subscribe(
        self,
        client: Any,  # noqa: ARG002
        userdata: Any,  # noqa: ARG002
        mid: int,
        reason_codes: list[ReasonCode],
        properties: Properties | None = None,  # noqa: ARG002
    ) -> None:
        filters = self._asked.pop(mid, [])
        if filters and len(filters) != len(reason_codes):
            self._end(PeerError(f"answered {len(filters)} subscriptions with {len(reason_codes)} reasons"))
        elif self._on_subscribed:
            for each, reason in zip(filters, reason_codes, strict=False):
                self._loop.call_soon(self._on_subscribed, each, reason)

    def _on_unsubscribe(
        self,
        client: Any,  # noqa: ARG002
        userdata: Any,  # noqa: ARG002
        mid: int,
        reason_codes: list[ReasonCode],  # noqa: ARG002
        properties: Properties | None = None,  # noqa: ARG002
    ) -> None:
        self._asked.pop(mid, None)

    def _on_message(self, client: Any, userdata: Any, message: Any) -> None:  # noqa: ARG002
        try:
            received = Received(
                message.topic,  # paho decodes it here
                bytes(message.payload),
                message.retain,
                getattr(message.properties, "ResponseTopic", ""),
                getattr(message.properties, "CorrelationData", b""),
                getattr(message.properties, "MessageExpiryInterval", None),
            )
        except UnicodeDecodeError:
            self._end(PeerError("sent a topic that is not UTF-8"))
            return
        longest = max(len(received.topic), len(received.response_topic))
        if longest > MAX_TOPIC_BYTES or len(received.correlation) > MAX_CORRELATION_BYTES:
            log.debug("event=mqtt_too_long topic=%s", received.topic)
        else:
            self._loop.call_soon(self._deliver, received)

    def _deliver(self, message: Received) -> None:
        if self._disconnected.done():
            return  # its receiver may be gone
        try:
            self._received(message)
        except Exception as error:  # noqa: BLE001 - a defect of ours: `ended` raises it to whoever waits
            self._defect = error
            self._end(error)

    def _end(self, error: Exception) -> None:
        self._usable = False
        if self._connected.done() and not self._disconnected.done():
            self._disconnected.set_exception(error)


def _unasked(message: Received) -> None:
    log.debug("event=mqtt_unasked topic=%s", message.topic)


def _batches(filters: Iterable[str]) -> list[list[str]]:
    every = list(filters)
    return [every[start : start + BATCH] for start in range(0, len(every), BATCH)]


def _properties(message: Message) -> Properties | None:
    if not message.content_type and not message.correlation:
        return None
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    if message.content_type:
        properties.ContentType = message.content_type
    if message.correlation:
        properties.CorrelationData = message.correlation
    return properties
