"""The operator's connection to the broker: retained messages out, what it holds and what devices say in."""

import asyncio
import secrets
import ssl
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Hashable, Iterable
from contextlib import asynccontextmanager
from typing import Any, NoReturn, TypeVar

import aiomqtt
from paho.mqtt.reasoncodes import ReasonCode

from appliance.backoff import Backoff
from appliance.config import MqttConfig
from appliance.errors import ConfigError, PeerError
from appliance.mqtt.endpoint import Endpoint, endpoint_of, tls_context
from appliance.mqtt.link import Link, Message, Received
from appliance.mqtt.reasons import FAILURE, explain

GIVE_UP_SECONDS = 900.0
"""A connection that was lost is tried again for so long."""
MARKER_SECONDS = 1.0
"""A broker that shows nothing more for so long is asked again whether that was all."""
SETTLE_SECONDS = 30.0
"""… and for so long: it does not let us read."""
SETTLE_TOTAL_SECONDS = 900.0
"""A broker that goes on sending is left after so long. What a fleet needs comes within it, over a slow line, too."""
MAX_SETTLE_BYTES = 64 << 20
"""Metadata of a fleet, or reports of its devices, with their topics, that are read at a time."""
MAX_SETTLE_CHUNK_BYTES = 4 << 30
"""Pieces of files that are read at a time: nothing is kept of them but what they hash to."""

T = TypeVar("T", bound=Hashable)
U = TypeVar("U")
Heard = Callable[[str, bytes], None]
"""(Topic, payload) of a message that came."""


class LostError(PeerError):
    """The connection ended, or could not be made, for a reason that may pass."""


class Session:
    """One connection. What waits here is cancelled when the connection ends: see :func:`connected`."""

    def __init__(self, endpoint: Endpoint, context: ssl.SSLContext | None, identifier: str) -> None:
        self._endpoint = endpoint
        self.link = Link(
            endpoint,
            identifier,
            None,
            context,
            self._acknowledged,
            on_message=self._received,
            on_subscribed=self._subscribed,
        )
        self._news = asyncio.Event()
        self._on_message: Heard = _nobody
        self._on_acknowledged: Callable[[Any], None] = _nobody
        self._under_way = 0
        self._answers: dict[str, ReasonCode | None] = {}
        self._marker: tuple[str, bytes] | None = None
        self._last_heard = time.monotonic()
        self._heard_bytes, self._most = 0, MAX_SETTLE_BYTES

    @property
    def max_message(self) -> int:
        """Bytes of the largest message (:attr:`Message.size`) that the broker takes."""
        return self.link.max_packet

    async def send(self, messages: AsyncIterable[tuple[Message, T]], on_acknowledged: Callable[[T], None]) -> None:
        """Send in order, as many at a time as the broker takes. Returns when all are acknowledged.

        ``on_acknowledged`` gets what was given with each message.
        """
        self._on_acknowledged = on_acknowledged
        async for message, token in messages:
            await self._until(lambda: self.link.room)
            self._under_way += 1
            self.link.send(message, (token,))
        await self._until(lambda: not self._under_way)

    async def listen(self, filters: Iterable[str], on_message: Heard, most: int = MAX_SETTLE_BYTES) -> None:
        """Subscribe. All that comes on this connection is for ``on_message``. PeerError where the broker refuses.

        What it holds may come before its answer, so it counts from here: more than ``most`` bytes until
        :meth:`settled` has returned, or longer than ``SETTLE_TOTAL_SECONDS``, is a PeerError.
        """
        self._on_message = on_message
        self._heard_bytes, self._most = 0, most
        async with self._to_an_end():
            await self._subscribe(filters)

    async def settled(self, topic: str) -> None:
        """Wait until all that the broker holds of what was subscribed to has come.

        It has when a message of our own on ``topic`` has come back, for that is behind it. A broker whose queue is full
        drops it, so it is sent until it comes. PeerError where it does not, and where something else comes without end.
        """
        self._marker = topic, secrets.token_bytes(16)
        self._last_heard = time.monotonic()
        async with self._to_an_end():
            await self._subscribe([topic])
            await self._until_marked(topic)
        self.link.leave([topic])

    async def _until_marked(self, topic: str) -> None:
        while self._marker is not None:
            if time.monotonic() - self._last_heard > SETTLE_SECONDS:
                raise PeerError(f"the broker at {self._endpoint} does not show {topic} to us; check its access list")
            self.link.send(Message(*self._marker), None)
            try:
                async with asyncio.timeout(MARKER_SECONDS):
                    await self._until(lambda: self._marker is None or self._too_much)
            except TimeoutError:
                pass
            self._check_amount()

    @property
    def _too_much(self) -> bool:
        return self._heard_bytes > self._most

    def _check_amount(self) -> None:
        if self._too_much:
            raise self._endless(f"has sent more than {self._most} bytes")

    @asynccontextmanager
    async def _to_an_end(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(SETTLE_TOTAL_SECONDS):
                yield
        except TimeoutError as error:
            raise self._endless(f"has been waited for {SETTLE_TOTAL_SECONDS:.0f} s") from error

    def _endless(self, what: str) -> PeerError:
        return PeerError(
            f"the broker at {self._endpoint} {what}, and what it shows has no end: something else is on the fleet's "
            "topics, or on those of its devices; clear them, or keep others from them by the broker's access list"
        )

    def leave(self, filters: Iterable[str]) -> None:
        """Unsubscribe; what is under way may still come."""
        self.link.leave(filters)

    async def _subscribe(self, filters: Iterable[str]) -> None:
        self._answers = dict.fromkeys(filters)
        self.link.ask_for(self._answers)
        await self._until(lambda: None not in self._answers.values() or self._too_much)
        self._check_amount()
        for each, answer in self._answers.items():
            if answer is not None and answer.value >= FAILURE:
                raise PeerError(f"the broker at {self._endpoint} does not show {each}: {answer}; check its access list")

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._news.clear()
            await self._news.wait()

    def _acknowledged(self, token: Hashable) -> None:
        if isinstance(token, tuple):
            self._under_way -= 1
            self._on_acknowledged(token[0])
        self._news.set()

    def _subscribed(self, topic_filter: str, answer: ReasonCode) -> None:
        if topic_filter in self._answers:
            self._answers[topic_filter] = answer
        self._news.set()

    def _received(self, message: Received) -> None:
        self._last_heard = time.monotonic()
        if self._marker is not None and message.topic == self._marker[0]:
            if message.payload == self._marker[1]:
                self._marker = None
                self._news.set()
        else:
            self._heard_bytes += len(message.topic) + len(message.payload)
            if self._too_much:
                self._news.set()
            self._on_message(message.topic, message.payload)


def _nobody(*_: object) -> None:
    """Hears what nobody has asked for."""


@asynccontextmanager
async def connected(config: MqttConfig, source: str) -> AsyncIterator[Session]:
    """A connection while the context lasts; its end cancels the body, and is raised.

    ``source`` is the file that the configuration is from. LostError where another try may help; ConfigError or
    PeerError where only the operator can.
    """
    endpoint, context = await asyncio.to_thread(_endpoint, config, source)
    session = Session(endpoint, context, f"appliance-operator-{secrets.token_hex(8)}")
    try:
        async with session.link, asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(_end_of(session.link), name="end of the connection")
            yield session
            watching.cancel()
    except aiomqtt.MqttError as error:
        raise _explained(error, endpoint, source) from error
    except BaseExceptionGroup as group:
        ended, others = group.split(aiomqtt.MqttError)
        if others is not None:  # the body's own error goes before the end of the connection
            raise others.exceptions[0] if len(others.exceptions) == 1 else others from None
        cause = ended.exceptions[0] if ended is not None else None
        assert isinstance(cause, aiomqtt.MqttError)
        raise _explained(cause, endpoint, source) from cause
    finally:
        session.link.abort()


async def _end_of(link: Link) -> NoReturn:
    while True:
        await link.ended()


def _endpoint(config: MqttConfig, source: str) -> tuple[Endpoint, ssl.SSLContext | None]:
    if not config.url:
        raise ConfigError(f"{source}: mqtt.url: names no broker: set it to mqtt://host or mqtts://host")
    try:
        endpoint = endpoint_of(config)
        return endpoint, tls_context(endpoint) if endpoint.tls else None
    except ConfigError as error:
        raise ConfigError(f"{source}: {_as_in_fleet_toml(str(error))}") from error


def _explained(error: aiomqtt.MqttError, endpoint: Endpoint, source: str) -> PeerError:
    text, refused = explain(error, endpoint)
    return PeerError(f"{source}: {_as_in_fleet_toml(text)}") if refused else LostError(text)


def _as_in_fleet_toml(text: str) -> str:
    """What names a key of the appliance's configuration, with the key that fleet.toml has for it."""
    return text.replace("mqtt.password", "mqtt.password_file")


async def persistently(
    work: Callable[[Session], Awaitable[U]],
    config: MqttConfig,
    source: str,
    *,
    lost: Callable[[str], None],
    retry: Backoff | None = None,
) -> U:
    """``work`` on a connection, and again from its beginning on another, whenever the connection is lost.

    ``lost`` hears why. LostError where there is no first connection, or no other within ``GIVE_UP_SECONDS``.
    """
    retry = retry or Backoff(0.5, 2.0, 15.0, 0.5)
    connected_once, away_since = False, None
    while True:
        try:
            async with connected(config, source) as session:
                connected_once, away_since = True, None
                retry.ok(time.monotonic())
                return await work(session)
        except LostError as error:
            now = time.monotonic()
            away_since = away_since if away_since is not None else now
            if not connected_once or now - away_since > GIVE_UP_SECONDS:
                raise
            lost(str(error))
            await asyncio.sleep(retry.failed(now))
