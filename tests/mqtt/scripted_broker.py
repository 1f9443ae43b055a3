"""Brokers that say what a test wants them to, byte by byte, and a client with a listener that writes down."""

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from mosquitto import PATIENCE

from appliance.backoff import Backoff
from appliance.mqtt.client import Client
from appliance.mqtt.endpoint import Endpoint, tls_context
from appliance.mqtt.link import Message, Received

CONNACK = bytes.fromhex("2003000000")
PUBACK = 0x40
DISCONNECT = 0xE0


@dataclass
class Listener:
    """Writes down what a client says."""

    events: list[str] = field(default_factory=list)
    tokens: list[Hashable] = field(default_factory=list)
    messages: list[Received] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def connected(self) -> None:
        self._note("connected")

    def disconnected(self) -> None:
        self._note("disconnected")

    def acknowledged(self, token: Hashable) -> None:
        self.tokens.append(token)
        self.news.set()

    def received(self, message: Received) -> None:
        self.messages.append(message)
        self.news.set()

    def _note(self, event: str) -> None:
        self.events.append(event)
        self.news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self.news.clear()
                await self.news.wait()


@asynccontextmanager
async def running(endpoint: Endpoint, listener: Listener, delay: float = 0.02) -> AsyncIterator[Client]:
    context = tls_context(endpoint) if endpoint.tls else None
    will = Message("will", b"lost", retain=True)
    retry, retry_refused = (Backoff(delay, limit=delay) for _ in range(2))
    client = Client(
        endpoint,
        context,
        "client",
        will,
        listener,
        on_message=listener.received,
        retry=retry,
        retry_refused=retry_refused,
    )
    task = asyncio.create_task(client.run())
    try:
        yield client
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


async def error_with(client: Client, words: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while words not in client.connection.error:
            await asyncio.sleep(0.01)
    assert not client.connection.connected
    assert not client.room


Conversation = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def fake_broker(script: list[Conversation]) -> AsyncIterator[Endpoint]:
    """A server that holds the first conversation of ``script`` with whoever comes; the test may change it."""
    open_ones: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_ones[task] = writer
        try:
            await reader.read(1000)  # CONNECT
            await script[0](reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()
            del open_ones[task]

    server = await asyncio.start_server(converse, "127.0.0.1", 0)
    try:
        yield Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for writer in open_ones.values():
            writer.transport.abort()
        if open_ones:
            await asyncio.wait(list(open_ones))


def says(answer: bytes, *, stay: bool = True) -> Conversation:
    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()
        while stay and await reader.read(1000):
            pass

    return converse


def packet(kind: int, body: bytes) -> bytes:
    """An MQTT packet, with its length."""
    length, rest = b"", len(body)
    while True:
        rest, digit = divmod(rest, 128)
        length += bytes((digit | (0x80 if rest else 0),))
        if not rest:
            return bytes((kind,)) + length + body


def publish(topic: bytes, payload: bytes = b"x", *, qos: int = 0, number: int = 1, properties: bytes = b"") -> bytes:
    number_bytes = struct.pack("!H", number) if qos else b""
    head = struct.pack("!H", len(topic)) + topic + number_bytes
    return packet(0x30 | qos << 1, head + packet(0, properties)[1:] + payload)


async def read_packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    kind = (await reader.readexactly(1))[0]
    length, factor = 0, 1
    while True:
        digit = (await reader.readexactly(1))[0]
        length += (digit & 127) * factor
        factor *= 128
        if digit < 128:
            return kind, await reader.readexactly(length)
