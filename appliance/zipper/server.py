"""The zipper's network side: one session for each connection, between its link, its conversation and the router."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from appliance.frame import Frame, Producer
from appliance.transport.link import Link
from appliance.transport.server import CappedServer, serve
from appliance.wire import Control, Credit, Goaway, Header, Hello, Report
from appliance.zipper.access import SOURCE, Access
from appliance.zipper.conversation import Conversation, State
from appliance.zipper.core import Ticket, Zipper

log = logging.getLogger(__name__)

HELLO_SECONDS = 5.0
"""A connection that has not said who it is by then is closed."""


@dataclass(slots=True)
class SourceStatus:
    """What is known of one source; kept after it has gone."""

    name: str
    connected: bool = False
    address: str = ""
    received: int = 0
    next_seq: int = 0
    """One more than the highest sequence number seen: where a restarted source goes on."""
    report: Report | None = None
    """The source's own last word on its camera."""
    closed_reason: str = ""


@dataclass(eq=False)
class Door:
    """Everything that sessions share."""

    zipper: Zipper
    access: Access
    device: str
    on_change: Callable[[SourceStatus], None] = lambda _status: None
    sources: dict[str, SourceStatus] = field(default_factory=dict)
    sessions: dict[tuple[bool, str], "PeerSession"] = field(default_factory=dict)
    """By (is a source, name): the same name twice is the same peer come back."""

    def enter(self, session: "PeerSession", hello: Hello) -> None:
        """The newest of a name wins."""
        key = (hello.role == SOURCE, hello.name)
        older = self.sessions.get(key)
        if older is not None:
            older.dismiss("replaced", "another peer has connected with this name")
        self.sessions[key] = session

    def leave(self, session: "PeerSession", hello: Hello) -> None:
        key = (hello.role == SOURCE, hello.name)
        if self.sessions.get(key) is session:
            del self.sessions[key]


class PeerSession:
    """One connection; the transport's Session protocol."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._conversation = Conversation(door.access, door.device)
        self._link: Link | None = None
        self._unanswered: deque[Ticket] = deque()
        self._observer = ""
        self._left = False
        self._timer = asyncio.get_running_loop().call_later(HELLO_SECONDS, self._too_slow)

    # --- transport's events ----------------------------------------------------------------------------------

    def opened(self, link: Link) -> None:
        self._link = link

    def control_received(self, message: Control) -> None:
        reply = self._conversation.control(message)
        if isinstance(message, Hello) and reply is not None:
            self._welcome(message)
            self._send(reply)
            if message.window and message.role != SOURCE:
                self._observe(message)
        elif isinstance(message, Credit):
            for _ in range(message.frames):
                self._door.zipper.finished(self._observer, self._unanswered.popleft())
        elif isinstance(message, Report):
            self._reported(message)
        elif isinstance(message, Goaway) and self._link is not None:
            self._leave(message.code)
            self._link.close()

    def frame_announced(self, header: Header) -> None:
        self._conversation.frame(header)

    def frame_received(self, frame: Frame) -> None:
        hello = self._conversation.hello
        if hello is None or self._conversation.state is State.LEAVING:
            return
        now = time.time_ns()
        if hello.role == SOURCE:
            status = self._door.sources[hello.name]
            status.received += 1
            status.next_seq = max(status.next_seq, frame.seq + 1)
            lossless = hello.lossless
            arrived = frame.after("transfer", now)
            self._door.zipper.receive(arrived, lossless=lossless, on_done=self._grant if lossless else _nothing)
            if not lossless:
                self._grant()
        else:
            self._door.zipper.emit(replace(frame, producer=Producer(hello.name, "remote")).after("remote", now))
            self._grant()

    def closed(self, reason: str) -> None:
        self._leave(reason)

    # --- what follows from them ------------------------------------------------------------------------------

    def dismiss(self, code: str, message: str) -> None:
        """Tell the peer to go, and forget it."""
        self._send(Goaway(code, message))
        self._leave(code)
        if self._link is not None:
            self._link.transmit()
            self._link.close()

    def _welcome(self, hello: Hello) -> None:
        self._timer.cancel()
        self._door.enter(self, hello)
        if self._link is not None:
            self._link.trust()
        log.info("event=peer_connected role=%s name=%s peer=%s", hello.role, hello.name, self._address)
        if hello.role == SOURCE:
            status = self._door.sources.setdefault(hello.name, SourceStatus(hello.name))
            status.connected, status.address, status.closed_reason = True, self._address, ""
            self._door.on_change(status)

    def _observe(self, hello: Hello) -> None:
        self._observer = f"remote/{hello.name}"
        self._door.zipper.attach(self._observer, hello.observes, hello.window, self._deliver)

    def _deliver(self, ticket: Ticket) -> None:
        self._unanswered.append(ticket)
        self._conversation.sent()
        if self._link is not None:
            self._link.send_frame(ticket.frame)

    def _reported(self, report: Report) -> None:
        hello = self._conversation.hello
        if hello is not None and hello.role == SOURCE:
            status = self._door.sources[hello.name]
            status.report = report
            self._door.on_change(status)

    def _grant(self) -> None:
        if not self._left:
            self._send(self._conversation.grant(1))

    def _leave(self, reason: str) -> None:
        self._timer.cancel()
        hello = self._conversation.hello
        if self._left or hello is None:
            self._left = True
            return
        self._left = True
        log.info("event=peer_left role=%s name=%s reason=%s", hello.role, hello.name, reason)
        if self._observer:
            self._door.zipper.detach(self._observer)
        self._door.leave(self, hello)
        if hello.role == SOURCE and (True, hello.name) not in self._door.sessions:
            status = self._door.sources[hello.name]
            status.connected, status.closed_reason = False, reason
            self._door.on_change(status)

    def _send(self, message: Control) -> None:
        if self._link is not None:
            self._link.send_control(message)

    def _too_slow(self) -> None:
        if self._link is not None:
            self._link.reject("protocol", f"no hello within {HELLO_SECONDS:g} s")

    @property
    def _address(self) -> str:
        return self._link.peer if self._link is not None else "unknown"


def _nothing() -> None:
    """A live source is not told when its frame is done."""


@asynccontextmanager
async def zipper_server(
    door: Door, host: str, port: int, certificate: tuple[Path, Path], max_connections: int
) -> AsyncIterator[tuple[CappedServer, int]]:
    """Listen for peers; on leaving, every peer is told goaway. Yields the server and the port it got."""
    async with serve(host, port, certificate, lambda: PeerSession(door), max_connections) as (server, bound):
        log.info("event=listening host=%s port=%d", host, bound)
        try:
            yield server, bound
        finally:
            for session in list(door.sessions.values()):
                session.dismiss("shutdown", "the zipper is stopping")
