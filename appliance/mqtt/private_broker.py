"""A Mosquitto of our own, on loopback, for a box that is given no broker.

Any program of this machine may use it: it has no passwords, and listens on 127.0.0.1 alone. It is kept
running on the port it began with, and ends with us, however we end.
"""

import asyncio
import logging
import os
import shutil
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from appliance.backoff import Backoff
from appliance.errors import DeviceError
from appliance.mqtt.result import MAX_RESULT_BYTES

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
START_SECONDS = 10.0
STOP_SECONDS = 5.0
START_TRIES = 3
"""Free ports tried, should another program take one between our look and the broker's."""
SAVE_SECONDS = 30
MAX_PACKET_BYTES = MAX_RESULT_BYTES + (64 << 10)
MAX_LOG_LINE = 512
SEARCH_PATH = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where Debian keeps the broker, and where a user's PATH often does not look."""
_CONNECT, _ACCEPTED, _DISCONNECT = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x0a\x00\x00", b"\x20\x02\x00\x00", b"\xe0\x00"
"""MQTT 3.1.1, without a client identifier."""
_CONFIG = """\
listener {port} {host}
allow_anonymous true
persistence true
persistence_location {directory}/
autosave_interval {save_seconds}
max_packet_size {max_packet}
set_tcp_nodelay true
connection_messages false
log_dest stderr
log_type error
log_type warning
log_type information
log_timestamp false
"""


class PrivateBroker:
    """Runs while the context lasts; its files are in ``directory``. DeviceError where it cannot be started."""

    def __init__(
        self, directory: Path, *, retry: Backoff | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._directory = directory
        self._retry = retry or Backoff(0.1, 2.0, 30.0)
        self._clock = clock
        self._process: asyncio.subprocess.Process | None = None
        self._tasks = asyncio.TaskGroup()
        self.port = 0
        self.restarts = 0

    @property
    def url(self) -> str:
        return f"mqtt://{HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """Of the broker's process, while it runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def __aenter__(self) -> Self:
        command = _command(self._directory / "mosquitto.conf")
        try:
            await self._start_somewhere(command)
        except asyncio.CancelledError:
            await self._stop()
            raise
        await self._tasks.__aenter__()
        self._keeping = self._tasks.create_task(self._keep(command), name="private broker")
        log.info("event=broker_started url=%s", self.url)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._keeping.cancel()
        try:
            # the task group hears of a cancellation alone: another error leaves the body as it is, in no group
            cancelled = isinstance(error, asyncio.CancelledError)
            await self._tasks.__aexit__(*((kind, error, trace) if cancelled else (None, None, None)))
        finally:
            await self._stop()

    async def _start_somewhere(self, command: list[str]) -> None:
        for left in reversed(range(START_TRIES)):
            self.port = _free_port()
            try:
                self._write_config()
                await self._start(command)
            except DeviceError:
                await self._stop()
                if not left:
                    raise
            else:
                return

    def _write_config(self) -> None:
        directory = str(self._directory.resolve())
        if not directory.isprintable():
            raise DeviceError(f"{directory!r}: not a directory that Mosquitto can be told of")
        text = _CONFIG.format(
            port=self.port, host=HOST, directory=directory, save_seconds=SAVE_SECONDS, max_packet=MAX_PACKET_BYTES
        )
        if os.geteuid() == 0:
            text += "user root\n"  # else it would become a user who may not write here
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            (self._directory / "mosquitto.conf").write_text(text, "utf-8")
        except OSError as error:
            raise DeviceError(f"{self._directory}: cannot be written: {error.strerror}") from error

    async def _start(self, command: list[str]) -> None:
        """Start the process and wait until it accepts connections."""
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,  # a ^C in the terminal is for us, not for it
            )
        except OSError as error:
            raise DeviceError(f"{command[0]}: cannot be started: {error.strerror}") from error
        said = _Log()
        self._reading = asyncio.create_task(said.read(process), name="private broker's log")
        try:
            async with asyncio.timeout(START_SECONDS):
                await said.settled.wait()
                answers = said.running and await _answers(self.port)
        except TimeoutError:
            answers = False
        if not answers:
            raise DeviceError(f"Mosquitto does not start: {' '.join(said.last) or 'it says nothing'}")

    async def _keep(self, command: list[str]) -> None:
        """Start the broker again, on the same port, whenever it dies."""
        while True:
            assert self._process is not None
            self._retry.ok(self._clock())
            status = await self._process.wait()
            await self._reading
            delay = self._retry.failed(self._clock())
            log.warning("event=broker_died status=%d retry_s=%.1f", status, delay)
            await asyncio.sleep(delay)
            try:
                await self._start(command)
                self.restarts += 1
            except DeviceError as error:
                log.warning("event=broker_not_back error=%s", error)
                self._signal(signal.SIGKILL)

    async def _stop(self) -> None:
        process = self._process
        if process is None:
            return
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            log.warning("event=broker_killed after_s=%.0f", STOP_SECONDS)
        finally:
            self._signal(signal.SIGKILL)
            await process.wait()
            await self._reading

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)


def _command(config: Path) -> list[str]:
    """The broker, by way of ``setpriv``, which has the kernel end it (in good order) when we die."""
    path = f"{os.environ.get('PATH', os.defpath)}:{SEARCH_PATH}"
    mosquitto, setpriv = shutil.which("mosquitto", path=path), shutil.which("setpriv", path=path)
    if mosquitto is None:
        raise DeviceError(
            "no MQTT broker is configured and Mosquitto is not here: `apt-get install mosquitto`, "
            "or name a broker in mqtt.url"
        )
    if setpriv is None:
        raise DeviceError("setpriv is not here: `apt-get install util-linux`")
    return [setpriv, "--pdeathsig", "TERM", mosquitto, "-c", str(config)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


async def _answers(port: int) -> bool:
    """Whether the broker takes a client: until its main loop runs, it would forget a signal to end."""
    try:
        reader, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    try:
        writer.write(_CONNECT)
        answer = await reader.read(len(_ACCEPTED))
        writer.write(_DISCONNECT)
        writer.close()
        await writer.wait_closed()
    except OSError:
        return False
    return answer == _ACCEPTED


class _Log:
    """What the broker says on stderr: it goes to our log, and tells that the broker listens."""

    def __init__(self) -> None:
        self.settled = asyncio.Event()
        """Set once the broker runs, or has ended."""
        self.running = False
        self.last: deque[str] = deque(maxlen=3)

    async def read(self, process: asyncio.subprocess.Process) -> None:
        """Until the broker ends."""
        assert process.stderr is not None
        line = b"-"
        while line:
            try:
                line = await process.stderr.readline()
            except ValueError:  # longer than the stream's buffer: that line is dropped
                continue
            self._take(line.decode("utf-8", "replace").strip()[:MAX_LOG_LINE])
        self.settled.set()

    def _take(self, text: str) -> None:
        if text:
            self.last.append(text)
            log.debug("event=broker_says text=%s", text)
        if text.endswith(" running"):  # "mosquitto version 2.0.11 running", said once it listens
            self.running = True
            self.settled.set()
