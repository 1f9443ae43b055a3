"""Receive windows that do not grow.

aioquic doubles its windows for as long as a connection lives, and fills the gaps of sparse streams with zeros:
eight one-byte frames made a server allocate 134 MB. Here a window *slides*: what a peer may have sent beyond
what was delivered to us never exceeds a constant, gaps included.

The override touches private names of aioquic, hence the tight version range in setup.cfg; the tests in
``tests/transport/test_flow.py`` mount the attack and fail when a new version changes what is relied on here.
"""

from aioquic.quic.connection import Limit, QuicConnection
from aioquic.quic.packet import QuicFrameType

from appliance.wire import MAX_FRAME_BYTES

WINDOW_BEFORE_ACCEPT = 64 << 10
"""Nobody needs more to say hello."""
WINDOW = 2 * MAX_FRAME_BYTES
"""One frame of the largest size under way while another is being taken."""
MAX_OPEN_STREAMS = 72
"""Streams a peer may have open: the largest window of frames (64) and some that are about to close."""


class SlidingLimit(Limit):
    """aioquic's connection-wide limit, but ``value`` is what was consumed plus a constant window."""

    def __init__(self, connection: QuicConnection, window: int) -> None:
        self._connection = connection
        self._granted = window
        self._settled_at = -1  # ``used`` when nothing was pending: then nothing changes until it does
        self.window = window
        super().__init__(frame_type=QuicFrameType.MAX_DATA, name="max_data", value=window)

    @property
    def value(self) -> int:
        if self.used == self._settled_at and self._granted - self.used >= self.window:
            return self._granted
        streams = self._connection._streams.values()  # noqa: SLF001 - see the module's docstring
        pending = sum(s.receiver.highest_offset - s.receiver.starting_offset() for s in streams)
        self._settled_at = -1 if pending else self.used
        self._granted = max(self._granted, self.used - pending + self.window)
        return self._granted

    @value.setter
    def value(self, value: int) -> None:
        """Ignored: this is aioquic doubling its window."""


def bound_receive_memory(connection: QuicConnection) -> SlidingLimit:
    """Bound what a peer can make a fresh connection buffer; raise ``window`` on the result once it is trusted."""
    limit = SlidingLimit(connection, WINDOW_BEFORE_ACCEPT)
    connection._local_max_data = limit  # noqa: SLF001 - see the module's docstring
    unidirectional, bidirectional = connection._local_max_streams_uni, connection._local_max_streams_bidi  # noqa: SLF001
    unidirectional.value = unidirectional.sent = MAX_OPEN_STREAMS
    bidirectional.value = bidirectional.sent = 1
    return limit
