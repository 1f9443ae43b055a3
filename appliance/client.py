"""Stream functions outside the box: observe tags, receive frames, emit results, in a few lines of Python.

    import asyncio
    from appliance.client import connect

    async def main():
        async with connect("doorbell", observes=[0x12], emits=[0x40]) as zipper:
            async for frame in zipper:
                people = [o for o in frame.value["objects"] if o["label"] == "person"]
                if people:
                    await zipper.emit(frame, 0x40, {"people": len(people)})

    asyncio.run(main())

On the box itself nothing else is needed: the address, the certificate and the credential are read from the
state directory. From another machine they are given: ``connect("doorbell", host="192.0.2.7", port=7801,
certificate="zipper-cert.pem", credential="…", …)``; see docs/wire.md for how a peer is allowed in.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cbor2

from appliance.backoff import Backoff
from appliance.cbor import decode_strict
from appliance.config import LinkConfig
from appliance.device.state import StateDirectory, open_state, read_secret
from appliance.errors import ConfigError, PeerError
from appliance.frame import Frame
from appliance.transport.identity import CERTIFICATE_FILE
from appliance.transport.peer import Address, DismissedError, Peer, RejectedError, join
from appliance.wire import PROTOCOL_VERSION, Hello

log = logging.getLogger(__name__)

DEFAULT_WINDOW = 4
"""Frames in flight to us: the newest always come, what we are too slow for is dropped by the zipper."""


@dataclass(frozen=True, slots=True)
class Observed:
    """A frame as a stream function sees it."""

    frame: Frame

    @property
    def tag(self) -> int:
        return self.frame.tag

    @property
    def source(self) -> str:
        return self.frame.source

    @property
    def seq(self) -> int:
        return self.frame.seq

    @property
    def payload(self) -> bytes:
        return bytes(self.frame.payload)

    @property
    def value(self) -> Any:
        """The payload of a data frame, decoded; ValueError where it is a picture or damaged."""
        if self.frame.format == "cbor":
            return decode_strict(self.payload)
        if self.frame.format == "json":
            return json.loads(self.payload)
        raise ValueError(f"a frame of format {self.frame.format} has no value; use .payload")


class ZipperConnection:
    """What :func:`connect` yields: iterate over it to observe, call :meth:`emit` to answer. Reconnects by itself."""

    def __init__(self, address: Address, hello: Hello) -> None:
        self._address = address
        self._hello = hello
        self._peer: asyncio.Future[Peer] = asyncio.get_running_loop().create_future()

    async def __aiter__(self) -> AsyncIterator[Observed]:
        """Frames as they come; a frame counts as dealt with when the next one is asked for."""
        while True:
            peer = await asyncio.shield(self._peer)
            try:
                frame = await peer.receive()
                try:
                    yield Observed(frame)
                finally:
                    with suppress(PeerError):
                        peer.done()
            except PeerError:
                await asyncio.sleep(0)  # the next connection is being made; its future is the one to wait for

    async def emit(self, about: Observed, tag: int, value: object) -> None:
        """Emit a frame about an observed one: bytes as they are, anything else as CBOR."""
        if isinstance(value, bytes):
            frame = about.frame.derive(tag, "bytes", value)
        else:
            frame = about.frame.derive(tag, "cbor", cbor2.dumps(value))
        if tag not in self._hello.emits:
            raise ValueError(f"tag {tag:#x} is not among those given to connect(emits=…)")
        await self.send(frame)

    async def send(self, frame: Frame) -> None:
        """Emit any frame, waiting for a connection and for credit."""
        while True:
            peer = await asyncio.shield(self._peer)
            try:
                await peer.send(frame)
            except PeerError:
                await asyncio.sleep(0)
            else:
                return

    async def _stay_connected(self) -> None:
        backoff = Backoff(0.2, limit=10.0, jitter=0.5)
        while True:
            try:
                async with join(self._address, self._hello) as peer:
                    backoff.ok(time.monotonic())
                    self._peer.set_result(peer)
                    error = await peer.gone()
                    raise error
            except (RejectedError, DismissedError) as error:
                if isinstance(error, RejectedError) or error.code == "replaced":
                    self._give_up(error)
                    return
                delay = backoff.failed(time.monotonic())
            except PeerError as error:
                delay = backoff.failed(time.monotonic())
                log.warning("event=not_connected name=%s retry_s=%.1f error=%s", self._hello.name, delay, error)
            if self._peer.done():
                self._peer = asyncio.get_running_loop().create_future()
            await asyncio.sleep(delay)

    def _give_up(self, error: PeerError) -> None:
        """Refused, or replaced by another of our name: whoever waits or will wait gets the reason."""
        if self._peer.done():
            self._peer = asyncio.get_running_loop().create_future()
        self._peer.set_exception(error)
        self._peer.exception()  # it may be that nobody asks


@asynccontextmanager
async def connect(
    name: str,
    *,
    observes: Iterable[int] = (),
    emits: Iterable[int] = (),
    host: str = "",
    port: int = 0,
    certificate: str | Path = "",
    credential: str = "",
    state: str = "",
    window: int = DEFAULT_WINDOW,
) -> AsyncIterator[ZipperConnection]:
    """Connect a stream function called ``name``; without ``emits`` it is a sink.

    What is not given is read from the state directory ``state`` (default: that of an appliance on this
    machine, run by the same user).
    """
    address, credential = _resolve(host, port, str(certificate), credential, state)
    role = "handler" if (emits := tuple(emits)) else "sink"
    observed = tuple(observes)
    hello = Hello(
        PROTOCOL_VERSION, role, name, credential, observes=observed, emits=emits, window=window if observed else 0
    )
    connection = ZipperConnection(address, hello)
    task = asyncio.create_task(connection._stay_connected(), name=f"zipper connection of {name}")  # noqa: SLF001
    try:
        yield connection
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _resolve(host: str, port: int, certificate: str, credential: str, state: str) -> tuple[Address, str]:
    if host and port and certificate and credential:
        return Address(host, port, Path(certificate)), credential
    directory = open_state(state)
    try:
        local = local_address(directory)
    except PeerError as error:
        raise ConfigError(f"{error}; start one, or give host, port, certificate and credential") from error
    address = Address(host or local.host, port or local.port, Path(certificate or local.certificate))
    return address, credential or directory.local_credential()


def local_address(state: StateDirectory) -> Address:
    """Where the zipper that uses this state directory listens; PeerError while none does."""
    try:
        host, port = state.address_file.read_text("utf-8").split()
        return Address(host, int(port), state.path / CERTIFICATE_FILE)
    except (OSError, ValueError) as error:
        raise PeerError(f"no appliance is running with the state directory {state.path}") from error


def link_to_zipper(config: LinkConfig, state: str) -> tuple[Callable[[], Address], str]:
    """(where the zipper is, our credential) by section ``[link]``, or on this box by the state directory.

    The address is a function because the zipper on this box may start later, and on another port each time.
    """
    if config.host:
        if not (config.port and config.certificate and config.credential):
            raise ConfigError("link.host needs link.port, link.certificate and link.credential with it")
        credential = config.credential
        if credential.startswith("file:"):
            credential = read_secret(Path(credential[5:]))
        address = Address(config.host, config.port, Path(config.certificate))
        return lambda: address, credential
    directory = open_state(state)
    return lambda: local_address(directory), directory.local_credential()
