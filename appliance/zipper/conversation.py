"""One peer's conversation with the zipper as a state machine. Sans-IO: messages in, replies out.

The table below is the protocol: what is not in it is an error of the peer's.
"""

from enum import Enum

from appliance.frame import MAX_STAGES, RESERVED_TAGS
from appliance.wire import PROTOCOL_VERSION, Accept, Control, Credit, Goaway, Header, Hello, Report
from appliance.zipper.access import HANDLER, SINK, SOURCE, Access, RefusedError

SOURCE_CREDITS = 4
"""Frames a source may have in flight: enough to fill the pipe, few enough to stay fresh."""
REMOTE_CREDITS = 32
"""Frames a remote handler may have in flight to us."""

MAX_PEER_STAGES = MAX_STAGES - 6
"""Entries of ``spent`` that a peer may send: the zipper adds transfer, remote, queue, decode, inference and handler,
and what it sends on must be within MAX_STAGES again."""


class State(Enum):
    GREETING = "greeting"
    SOURCE = "source"
    HANDLER = "handler"
    SINK = "sink"
    LEAVING = "leaving"


ROLE_STATES = {SOURCE: State.SOURCE, HANDLER: State.HANDLER, SINK: State.SINK}

TABLE: dict[State, dict[type, State | None]] = {
    # state           what may come -> next state (None: the hello's role decides)
    State.GREETING: {Hello: None, Goaway: State.LEAVING},
    State.SOURCE: {Header: State.SOURCE, Report: State.SOURCE, Goaway: State.LEAVING},
    State.HANDLER: {Header: State.HANDLER, Credit: State.HANDLER, Goaway: State.LEAVING},
    State.SINK: {Credit: State.SINK, Goaway: State.LEAVING},
    # frames and credits that were under way when the peer said goodbye
    State.LEAVING: {Header: State.LEAVING, Credit: State.LEAVING, Report: State.LEAVING, Goaway: State.LEAVING},
}


class Conversation:
    """What one peer is, what it may do next, and how many frames it may still send."""

    def __init__(self, access: Access, device: str) -> None:
        self._access = access
        self._device = device
        self.state = State.GREETING
        self.hello: Hello | None = None
        self.credits = 0
        """Frames the peer may still send."""
        self.owed = 0
        """Frames we sent that the peer has not given credit for yet."""

    def control(self, message: Control) -> Accept | None:
        """Take a control message; the reply, if there is one. RefusedError where it may not come now."""
        self._step(type(message))
        if isinstance(message, Hello):
            return self._greet(message)
        if isinstance(message, Credit):
            if message.frames > self.owed:
                raise RefusedError("credit", "credit for more frames than were sent")
            self.owed -= message.frames
        return None

    def frame(self, header: Header) -> None:
        """A frame is announced: RefusedError unless this peer may send it now."""
        self._step(Header)
        hello = self.hello
        if hello is None:
            raise RefusedError("protocol", "a frame before the hello")
        if self.credits == 0:
            raise RefusedError("credit", "a frame without credit")
        if header.tag not in hello.emits or header.tag in RESERVED_TAGS:
            raise RefusedError("tags", f"tag {header.tag:#x} is not among those declared in the hello")
        if hello.role == SOURCE and header.source != hello.name:
            raise RefusedError("protocol", f"source {hello.name} sent a frame of {header.source}")
        if len(header.spent) > MAX_PEER_STAGES:
            raise RefusedError("protocol", f"more than {MAX_PEER_STAGES} stages in `spent` leave the zipper no room")
        self.credits -= 1

    def grant(self, frames: int) -> Credit:
        """Let the peer send more."""
        self.credits += frames
        return Credit(frames)

    def sent(self) -> None:
        """One frame went to the peer; it owes us a credit for it."""
        self.owed += 1

    def _greet(self, hello: Hello) -> Accept:
        self._access.check(hello)
        self.hello = hello
        self.state = ROLE_STATES[hello.role]
        self.credits = {SOURCE: SOURCE_CREDITS, HANDLER: REMOTE_CREDITS, SINK: 0}[hello.role]
        return Accept(PROTOCOL_VERSION, self._device, self.credits)

    def _step(self, kind: type) -> None:
        allowed = TABLE[self.state]
        if kind not in allowed:
            raise RefusedError("protocol", f"{kind.__name__.lower()} is out of place in state {self.state.value}")
        following = allowed[kind]
        if following is not None:
            self.state = following
