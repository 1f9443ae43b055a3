"""Real brokers and subscribers for the tests."""

import asyncio
import contextlib
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import aiomqtt

PATIENCE = 15.0
"""Seconds that a test waits for what must come."""
BINARY = shutil.which("mosquitto", path="/usr/local/sbin:/usr/sbin:/usr/bin:/opt/homebrew/sbin")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Mosquitto:
    """A broker that forgets everything when it is killed. ``settings`` may be changed before a start."""

    def __init__(self, directory: Path, *settings: str) -> None:
        self.directory = directory
        self.settings = list(settings)
        self.port = free_port()
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    @property
    def subscribe(self) -> list[str]:
        """The command that subscribes, without its topics."""
        return ["mosquitto_sub", "-h", "127.0.0.1", "-p", str(self.port), "-q", "1"]

    def start(self) -> Self:
        assert BINARY is not None
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "mosquitto.conf"
        given = self.settings or ["allow_anonymous true"]
        # what is acknowledged to a publisher has been written to its subscribers
        bounds = ("max_inflight_messages", "max_queued_messages")
        lines = [
            f"listener {self.port} 127.0.0.1",
            *given,
            *(f"{bound} 0" for bound in bounds if not any(line.startswith(bound) for line in given)),
            "set_tcp_nodelay true",
            "connection_messages false",
            "log_dest stderr",
            "user root",
        ]
        config.write_text("\n".join([*lines, ""]))
        process = subprocess.Popen(
            [BINARY, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if "running" in line:
                self._process = process
                return self
        process.wait()
        raise AssertionError(f"mosquitto does not start: {said}")

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()
            assert self._process.stderr is not None
            self._process.stderr.close()
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


async def end(task: asyncio.Task[None]) -> None:
    """A task of aiomqtt's may lose a cancellation, by Python 3.11's asyncio.wait_for: told until it has heard."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=1.0)


@dataclass(frozen=True)
class Received:
    topic: str
    payload: bytes
    qos: int
    retain: bool


class Subscriber:
    """Hears everything, and comes back when the broker does."""

    def __init__(self, port: int, qos: int = 1) -> None:
        self._port = port
        self._qos = qos
        self._news = asyncio.Condition()
        self._subscribed = False
        self.received: list[Received] = []

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        await self.subscribed()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await end(self._task)

    async def subscribed(self, value: bool = True) -> None:
        """Wait until it is (or is not) subscribed."""
        await self._wait(lambda: self._subscribed is value)

    async def until(self, enough: Callable[[], bool]) -> None:
        """Wait until what was received is enough."""
        await self._wait(enough)

    def results(self) -> list[Received]:
        return [message for message in self.received if "/result/" in message.topic]

    def distinct(self) -> int:
        """How many different results came."""
        return len({message.payload for message in self.results()})

    def states(self, topic: str) -> list[bytes]:
        return [message.payload for message in self.received if message.topic.endswith(topic)]

    async def _wait(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE), self._news:
            await self._news.wait_for(condition)

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(aiomqtt.MqttError):
                client = aiomqtt.Client("127.0.0.1", self._port, protocol=aiomqtt.ProtocolVersion.V5, timeout=2)
                async with client:
                    await client.subscribe("#", qos=self._qos)
                    await self._tell(subscribed=True)
                    async for message in client.messages:
                        assert isinstance(message.payload, bytes)
                        received = Received(str(message.topic), message.payload, message.qos, message.retain)
                        self.received.append(received)
                        await self._tell(subscribed=True)
            await self._tell(subscribed=False)
            await asyncio.sleep(0.02)

    async def _tell(self, *, subscribed: bool) -> None:
        async with self._news:
            self._subscribed = subscribed
            self._news.notify_all()


class Gate:
    """A TCP port in front of a broker that can be shut: nobody listens then. What comes is passed ``delay`` later."""

    def __init__(self, target: int, delay: float = 0.0) -> None:
        self._target = target
        self._delay = delay
        self.to_broker = 0
        """Bytes so far, of all connections."""
        self.from_broker = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def shut(self) -> None:
        """Stop listening and cut what is connected."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.shut()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._join(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._target)
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(_copy(reader, inner_writer, self._delay, self._to_broker))
                    tasks.create_task(_copy(inner_reader, writer, self._delay, self._from_broker))
            finally:
                inner_writer.transport.abort()
        except* OSError:
            pass
        finally:
            writer.transport.abort()

    def _to_broker(self, count: int) -> None:
        self.to_broker += count

    def _from_broker(self, count: int) -> None:
        self.from_broker += count


async def _copy(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float, count: Callable[[int], None]
) -> None:
    loop = asyncio.get_running_loop()
    while data := await reader.read(65536):
        count(len(data))
        if delay:
            loop.call_later(delay, writer.write, data)
        else:
            writer.write(data)
        await writer.drain()
    raise ConnectionError("ended")
