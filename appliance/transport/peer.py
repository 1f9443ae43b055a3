"""The connecting side of a conversation with a zipper, for sources and remote stream functions alike."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import PeerError
from appliance.frame import Frame
from appliance.transport.client import connect
from appliance.transport.link import Link
from appliance.wire import Accept, Control, Credit, Goaway, Header, Hello, Reject, Report

ACCEPT_SECONDS = 5.0


class RejectedError(PeerError):
    """The zipper refused us; trying again without a change will not help soon."""


class DismissedError(PeerError):
    """The zipper said goaway; ``code`` is ``replaced`` or ``shutdown``."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"the zipper said goaway: {code} {message}".strip())
        self.code = code


@dataclass(frozen=True, slots=True)
class Address:
    """Where a zipper is and how to know it."""

    host: str
    port: int
    certificate: Path


class Peer:
    """One accepted connection. Every method raises PeerError once it is gone."""

    def __init__(self, hello: Hello) -> None:
        self.hello = hello
        self.accepted: asyncio.Future[Accept] = asyncio.get_running_loop().create_future()
        self.accepted.add_done_callback(lambda future: future.cancelled() or future.exception())  # may go unasked
        self.credits = 0
        self._frames: deque[Frame] = deque()
        self._changed = asyncio.Event()
        self._error: PeerError | None = None
        self._link: Link | None = None

    # --- for the user ----------------------------------------------------------------------------------------

    async def send(self, frame: Frame) -> None:
        """Send a frame as soon as there is credit."""
        await self.credit()
        self.send_now(frame)

    async def credit(self) -> None:
        """Wait until a frame may be sent."""
        while self.credits == 0:
            await self._change()

    def send_now(self, frame: Frame) -> None:
        """Send a frame; the caller has seen that ``credits`` is not 0."""
        self._check()
        self.credits -= 1
        self._link_now().send_frame(frame)

    async def receive(self) -> Frame:
        """The next observed frame. Call :meth:`done` when finished with it: that lets the next one come."""
        while not self._frames:
            await self._change()
        return self._frames.popleft()

    def done(self) -> None:
        """One received frame is dealt with."""
        self._link_now().send_control(Credit(1))

    def report(self, report: Report) -> None:
        self._link_now().send_control(report)

    async def settled(self, credits: int) -> None:
        """Wait until that many credits are back: everything sent is dealt with."""
        while self.credits < credits:
            await self._change()

    async def gone(self) -> PeerError:
        """Wait for the end of the connection; returns why it ended."""
        while self._error is None:
            self._changed.clear()
            await self._changed.wait()
        return self._error

    def leave(self) -> None:
        """Say goodbye before closing."""
        if self._error is None and self._link is not None:
            self._link.send_control(Goaway("finished"))
            self._link.transmit()

    # --- transport's events ----------------------------------------------------------------------------------

    def opened(self, link: Link) -> None:
        self._link = link
        link.trust()
        link.send_control(self.hello)

    def control_received(self, message: Control) -> None:
        if isinstance(message, Accept) and not self.accepted.done():
            self.credits = message.credits
            self.accepted.set_result(message)
        elif isinstance(message, Credit):
            self.credits += message.frames
        elif isinstance(message, Reject):
            self._fail(RejectedError(f"the zipper refused {self.hello.name}: {message.message} ({message.code})"))
        elif isinstance(message, Goaway):
            self._fail(DismissedError(message.code, message.message))
        else:
            raise PeerError(f"the zipper sent an unexpected {type(message).__name__.lower()}")
        self._changed.set()

    def frame_announced(self, header: Header) -> None:
        if header.tag not in self.hello.observes:
            raise PeerError(f"the zipper sent tag {header.tag:#x}, which was not asked for")
        if len(self._frames) >= self.hello.window:
            raise PeerError("the zipper sent more frames than the window allows")

    def frame_received(self, frame: Frame) -> None:
        self._frames.append(frame)
        self._changed.set()

    def closed(self, reason: str) -> None:
        self._fail(PeerError(f"the connection to the zipper ended: {reason}"))

    # -----------------------------------------------------------------------------------------------------------

    def _fail(self, error: PeerError) -> None:
        if self._error is None:
            self._error = error
            if not self.accepted.done():
                self.accepted.set_exception(error)
        self._changed.set()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _link_now(self) -> Link:
        self._check()
        if self._link is None:
            raise PeerError("not connected yet")
        return self._link

    async def _change(self) -> None:
        self._check()
        self._changed.clear()
        await self._changed.wait()
        self._check()


@asynccontextmanager
async def join(address: Address, hello: Hello) -> AsyncIterator[Peer]:
    """Connect and be accepted; PeerError (RejectedError where the zipper refuses) otherwise."""
    peer = Peer(hello)
    async with connect(address.host, address.port, address.certificate, peer):
        try:
            async with asyncio.timeout(ACCEPT_SECONDS):
                await peer.accepted
        except TimeoutError as error:
            raise PeerError(f"the zipper at {address.host}:{address.port} does not answer the hello") from error
        try:
            yield peer
        finally:
            peer.leave()
