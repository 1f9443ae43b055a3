"""The client: stays connected to one broker, and is honest about it.

Each connection is a new session on a new link: nothing is left over from the one before, and what was not
acknowledged is for the listener to send again. What is subscribed to stays so: each connection asks for it anew.
"""

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from typing import NoReturn, Protocol

import aiomqtt
from paho.mqtt.reasoncodes import ReasonCode

from appliance.backoff import Backoff
from appliance.mqtt.endpoint import Endpoint
from appliance.mqtt.link import Link, Message, Received
from appliance.mqtt.reasons import FAILURE, RefusedError, explain

log = logging.getLogger(__name__)

MAX_FILTERS = 1024
"""Subscribed to at a time."""
REFUSED_SECONDS = 60.0
"""A subscription that was refused is asked for again after so long: access lists are mended."""
SHORT_SECONDS = 10.0
"""A connection that was lost within so long was hardly one."""
SHORT_LIVES = 3
"""After so many of them in a row somebody else may be here by the same name: Mosquitto's word of that gets lost."""
MAX_COMPLAINTS = 32
"""Refusals that are logged, until the broker has taken something that it refused before."""


@dataclass(frozen=True, slots=True)
class Connection:
    """What is true now. ``error`` says why it is not connected, in words for the operator."""

    connected: bool = False
    error: str = "not connected yet"
    reconnects: int = 0
    refused: tuple[str, ...] = ()
    """Filters that the broker does not let this client subscribe to."""


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
        will: Message | None,
        listener: Listener,
        *,
        on_message: Callable[[Received], None] | None = None,
        on_refused: Callable[[RefusedError], None] | None = None,
        retry: Backoff | None = None,
        retry_refused: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``context`` for TLS, of :func:`appliance.mqtt.endpoint.tls_context`; None without.

        What ``on_message`` raises, :meth:`run` raises. ``on_refused``: see :class:`Link`.
        """
        self._endpoint = endpoint
        self._context = context
        self._identifier = identifier
        self._will = will
        self._listener = listener
        self._on_message = on_message
        self._on_refused = on_refused
        self._retry = retry or Backoff(0.5, 2.0, 30.0, 0.5)
        self._retry_refused = retry_refused or Backoff(10.0, 2.0, 300.0, 0.5)
        self._clock = clock
        self._link: Link | None = None
        self._connections = 0
        self._said = ""
        self._up_at: float | None = None
        self._short_lives = 0
        """Connections in a row that were lost soon after they were made."""
        self._filters: dict[str, None] = {}
        self._refused: dict[str, None] = {}
        self._complaints: set[str] = set()
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

    def subscribe(self, filters: Iterable[str]) -> None:
        """Subscribe, now and at each connection; ValueError beyond ``MAX_FILTERS``, which is the caller's mistake."""
        new = [each for each in dict.fromkeys(filters) if each not in self._filters]
        if len(self._filters) + len(new) > MAX_FILTERS:
            raise ValueError(f"more than {MAX_FILTERS} subscriptions")
        self._filters |= dict.fromkeys(new)
        if self._link is not None:
            self._link.ask_for(new)

    def unsubscribe(self, filters: Iterable[str]) -> None:
        """What is under way may still come."""
        gone = [each for each in dict.fromkeys(filters) if each in self._filters]
        for each in gone:
            del self._filters[each]
            self._refused.pop(each, None)
        self._show_refused()
        if self._link is not None:
            self._link.leave(gone)

    async def run(self) -> None:
        """Connect, and connect again, until cancelled; then hang up in good order."""
        while True:
            try:
                await self._session()
            except aiomqtt.MqttError as error:
                delay = self._failed(error)
            await asyncio.sleep(delay)

    async def _session(self) -> NoReturn:
        link = Link(
            self._endpoint,
            self._identifier,
            self._will,
            self._context,
            self._listener.acknowledged,
            on_message=self._on_message,
            on_subscribed=self._subscribed,
            on_refused=self._on_refused,
        )
        try:
            async with link:
                self._up(link)
                while True:
                    await link.ended(REFUSED_SECONDS)
                    link.ask_for(self._refused)
        finally:
            link.abort()
            self._down()

    def _up(self, link: Link) -> None:
        self._retry.ok(self._clock())
        self._retry_refused.ok(self._clock())
        self._said = ""
        self._up_at = self._clock()
        self._link = link
        self.connection = Connection(connected=True, error="", reconnects=self._connections)
        self._connections += 1
        log.info("event=mqtt_connected broker=%s client=%s", self._endpoint, self._identifier)
        link.ask_for(self._filters)
        self._listener.connected()

    def _down(self) -> None:
        if self._link is not None:
            self._link = None
            self._refused.clear()
            self._show_refused()
            self.connection = replace(self.connection, connected=False, error="the connection has ended")
            self._listener.disconnected()

    def _subscribed(self, topic_filter: str, reason: ReasonCode) -> None:
        if topic_filter not in self._filters or self._link is None:
            return
        if reason.value < FAILURE:
            self._refused.pop(topic_filter, None)
            self._complaints.discard(topic_filter)
        else:
            self._refused[topic_filter] = None
            if topic_filter not in self._complaints and len(self._complaints) < MAX_COMPLAINTS:
                self._complaints.add(topic_filter)
                text = "event=mqtt_subscription_refused filter=%s reason=%s remedy=%r"
                log.warning(text, topic_filter, reason, "check the broker's access list")
        self._show_refused()

    def _show_refused(self) -> None:
        if self.connection.refused != (refused := tuple(self._refused)):
            self.connection = replace(self.connection, refused=refused)

    def _failed(self, error: aiomqtt.MqttError) -> float:
        """Say what happened, once; seconds to wait before trying again."""
        text, refused = explain(error, self._endpoint)
        if self._up_at is not None:
            self._short_lives = self._short_lives + 1 if self._clock() - self._up_at < SHORT_SECONDS else 0
            self._up_at = None
        if self._short_lives >= SHORT_LIVES and not refused:
            text = f"{text}, soon after it was made, and not for the first time: is there another {self._identifier}?"
        delay = (self._retry_refused if refused else self._retry).failed(self._clock())
        if text != self._said:
            log.warning("event=mqtt_not_connected retry_s=%.1f error=%s", delay, text)
        self._said = text
        self.connection = replace(self.connection, error=text)
        return delay
