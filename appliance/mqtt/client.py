"""The client: stays connected to one broker, and is honest about it.

Each connection is a new session on a new link: nothing is left over from the one before, and what was not
acknowledged is for the listener to send again.
"""

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import NoReturn, Protocol

import aiomqtt

from appliance.backoff import Backoff
from appliance.mqtt.endpoint import Endpoint
from appliance.mqtt.link import Link, Message, explain

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Connection:
    """What is true now. ``error`` says why it is not connected, in words for the operator."""

    connected: bool = False
    error: str = "not connected yet"
    reconnects: int = 0


class Listener(Protocol):
    """Whoever uses the client; called on the loop."""

    def connected(self) -> None: ...

    def disconnected(self) -> None:
        """Nothing that was not acknowledged will be."""

    def acknowledged(self, token: Hashable) -> None:
        """The broker has taken the message that was sent with ``token``."""


class Client:
    """Stays connected to one broker while :meth:`run` runs; sends what its listener gives it."""

    def __init__(
        self,
        endpoint: Endpoint,
        context: ssl.SSLContext | None,
        identifier: str,
        will: Message,
        listener: Listener,
        *,
        retry: Backoff | None = None,
        retry_refused: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``context`` for TLS, of :func:`appliance.mqtt.endpoint.tls_context`; None without."""
        self._endpoint = endpoint
        self._context = context
        self._identifier = identifier
        self._will = will
        self._listener = listener
        self._retry = retry or Backoff(0.5, 2.0, 30.0, 0.5)
        self._retry_refused = retry_refused or Backoff(10.0, 2.0, 300.0, 0.5)
        self._clock = clock
        self._link: Link | None = None
        self._connections = 0
        self._said = ""
        self.connection = Connection()

    @property
    def room(self) -> bool:
        """Whether a message can be sent now."""
        return self._link is not None and self._link.room

    @property
    def max_message(self) -> int:
        """Bytes of the largest message (:attr:`Message.size`) that the broker takes."""
        return self._link.max_packet if self._link else 0

    def send(self, message: Message, token: Hashable) -> None:
        """Send; ``token`` comes back when it is acknowledged (QoS 1). Only while :attr:`room`, or with QoS 0."""
        if self._link is not None:
            self._link.send(message, token)

    async def run(self) -> None:
        """Connect, and connect again, until cancelled; then hang up in good order."""
        while True:
            try:
                await self._session()
            except aiomqtt.MqttError as error:
                delay = self._failed(error)
            await asyncio.sleep(delay)

    async def _session(self) -> NoReturn:
        link = Link(self._endpoint, self._identifier, self._will, self._context, self._listener.acknowledged)
        try:
            async with link:
                self._up(link)
                async for message in link.messages:
                    log.debug("event=mqtt_unasked topic=%s", message.topic)
            raise AssertionError("aiomqtt ends its messages with an error only")
        finally:
            link.abort()
            self._down()

    def _up(self, link: Link) -> None:
        self._retry.ok(self._clock())
        self._retry_refused.ok(self._clock())
        self._said = ""
        self._link = link
        self.connection = Connection(connected=True, error="", reconnects=self._connections)
        self._connections += 1
        log.info("event=mqtt_connected broker=%s", self._endpoint)
        self._listener.connected()

    def _down(self) -> None:
        if self._link is not None:
            self._link = None
            self.connection = replace(self.connection, connected=False, error="the connection has ended")
            self._listener.disconnected()

    def _failed(self, error: aiomqtt.MqttError) -> float:
        """Say what happened, once; seconds to wait before trying again."""
        text, refused = explain(error, self._endpoint)
        delay = (self._retry_refused if refused else self._retry).failed(self._clock())
        if text != self._said:
            log.warning("event=mqtt_not_connected retry_s=%.1f error=%s", delay, text)
        self._said = text
        self.connection = replace(self.connection, error=text)
        return delay
