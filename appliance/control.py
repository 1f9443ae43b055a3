"""The box's ears: one connection for all that comes from the broker, apart from the one that results leave by.

Nothing that arrives here, however much, can push the results off their way. Who listens is called on the loop, at
once, one message after another; what a listener raises is a defect and ends the body.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

from paho.mqtt.matcher import MQTTMatcher

from appliance.backoff import Backoff
from appliance.config import MqttConfig
from appliance.mqtt.client import Client, Connection
from appliance.mqtt.endpoint import endpoint_of, tls_context
from appliance.mqtt.link import Message, Received
from appliance.mqtt.reasons import RefusedError

log = logging.getLogger(__name__)

MAX_QUEUED = 64
"""Messages to be sent that wait for a connection or for room in its window; further ones are dropped."""
MAX_QUEUED_BYTES = 8 << 20
MAX_COMPLAINTS = 32
"""Topics whose refusal by the broker is logged."""

OnMessage = Callable[[Received], None]


class Control:
    """``async with``: connected, and connected again, as ``appliance-<device>-control``; from when it is used."""

    def __init__(
        self,
        config: MqttConfig,
        device: str,
        *,
        retry: Backoff | None = None,
        retry_refused: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """ConfigError for what of ``config`` is about the connection; the back-offs are the connection's."""
        self._endpoint = endpoint_of(config)
        self._identifier = f"appliance-{device}-control"
        self._retries = (retry, retry_refused)
        self._clock = clock
        self._client: Client | None = None
        self._listeners: dict[str, OnMessage] = {}
        self._matcher = MQTTMatcher()  # type: ignore[no-untyped-call]
        self._on_connected: list[Callable[[], None]] = []
        self._queue: deque[Message] = deque()
        self._queued_bytes = 0
        self._complaints: set[str] = set()
        self._needed = asyncio.Event()
        self.dropped = 0
        """Messages that were to be sent and were not."""

    async def __aenter__(self) -> Self:
        context = await asyncio.to_thread(tls_context, self._endpoint) if self._endpoint.tls else None
        retry, retry_refused = self._retries
        self._client = Client(
            self._endpoint,
            context,
            self._identifier,
            None,
            self,
            on_message=self._dispatch,
            on_refused=self._refused,
            retry=retry,
            retry_refused=retry_refused,
            clock=self._clock,
        )
        self._client.subscribe(self._listeners)
        async with AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            self._connecting = tasks.create_task(self._connect(self._client), name="mqtt control")
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connecting.cancel()
        # the task group hears of a cancellation alone: another error leaves the body as it is, in no group
        cancelled = isinstance(error, asyncio.CancelledError)
        await self._stack.__aexit__(*((kind, error, trace) if cancelled else (None, None, None)))

    async def _connect(self, client: Client) -> None:
        """Not before there is something to hear or to say: most boxes need no second connection."""
        await self._needed.wait()
        await client.run()

    # --- what others call ----------------------------------------------------------------------------------

    @property
    def connection(self) -> Connection:
        return self._client.connection if self._client else Connection()

    @property
    def document(self) -> dict[str, Any]:
        """For the statistics."""
        told = self.connection
        return {
            "connected": told.connected,
            "reconnects": told.reconnects,
            "refused": told.refused,
            "dropped": self.dropped,
        }

    @property
    def max_message(self) -> int:
        """Bytes of the largest message (:attr:`Message.size`) that the broker takes; 0 while not connected."""
        return self._client.max_message if self._client else 0

    def listen(self, filters: Iterable[str], on_message: OnMessage) -> None:
        """Hear of messages that match, from now on and at each connection: the retained ones first.

        A filter has one listener, the last that asked. Where filters overlap a message may come twice.
        """
        filters = list(filters)
        self._needed.set()
        if self._client is not None:
            self._client.subscribe(filters)
        for each in filters:
            self._listeners[each] = on_message
            self._matcher[each] = on_message

    def ignore(self, filters: Iterable[str]) -> None:
        """Hear of them no more, not even of what is under way."""
        known = [each for each in dict.fromkeys(filters) if each in self._listeners]
        for each in known:
            del self._listeners[each]
            del self._matcher[each]  # type: ignore[no-untyped-call]
        if self._client is not None:
            self._client.unsubscribe(known)

    def send(self, message: Message) -> None:
        """Send when there is a connection. Beyond the bounds of what may wait it is dropped and counted."""
        if len(self._queue) >= MAX_QUEUED or self._queued_bytes + message.size > MAX_QUEUED_BYTES:
            self._drop(message, "too many wait")
            return
        self._needed.set()
        self._queue.append(message)
        self._queued_bytes += message.size
        self._pump()

    def say(self, message: Message) -> bool:
        """Send with QoS 0, now or never: whether there was a connection with room for it."""
        self._needed.set()
        client = self._client
        if client is None or not client.room or message.size > client.max_message:
            return False
        client.send(message, None)
        return True

    def on_connected(self, call: Callable[[], None]) -> None:
        """``call`` after each connection is up and its subscriptions are asked for."""
        self._on_connected.append(call)

    # --- what the connection says --------------------------------------------------------------------------

    def connected(self) -> None:
        for call in self._on_connected:
            call()
        self._pump()

    def disconnected(self) -> None:
        """What was sent and not acknowledged is lost: who asked will ask again."""

    def acknowledged(self, token: Hashable) -> None:  # noqa: ARG002 - room is all that matters
        self._pump()

    # --- inside --------------------------------------------------------------------------------------------

    def _dispatch(self, message: Received) -> None:
        for listener in dict.fromkeys(self._matcher.iter_match(message.topic)):  # type: ignore[no-untyped-call]
            listener(message)

    def _pump(self) -> None:
        client = self._client
        while client is not None and self._queue and client.room:
            message = self._queue.popleft()
            self._queued_bytes -= message.size
            if message.size > client.max_message:
                self._drop(message, "the broker takes nothing so large")
            else:
                client.send(message, None)

    def _drop(self, message: Message, why: str) -> None:
        """Count; say it when the first is dropped and whenever their number has doubled."""
        self.dropped += 1
        if self.dropped & (self.dropped - 1) == 0:
            log.warning("event=mqtt_dropped topic=%s why=%r total=%d", message.topic, why, self.dropped)

    def _refused(self, error: RefusedError) -> None:
        """One message is not worth the connection: who asks chooses the topic of the answer."""
        if error.topic not in self._complaints and len(self._complaints) < MAX_COMPLAINTS:
            self._complaints.add(error.topic)
            log.warning("event=mqtt_message_refused error=%s remedy=%r", error, "check the broker's access list")
