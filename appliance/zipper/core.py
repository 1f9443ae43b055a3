"""The zipper without its network: frames in, deliveries to whoever observes them, frames that come of that.

Everything runs on one event loop and nothing here waits, so there are no locks.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from appliance.frame import Frame
from appliance.ipc.ring import FrameRef, RingWriter
from appliance.zipper.router import Observer, Router

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Ticket:
    """One frame on its way. Whoever needs it holds it; when nobody does any more, it is done."""

    frame: Frame
    lossless: bool
    on_done: Callable[[], None]
    ref: FrameRef | None = None
    holders: int = 0

    @property
    def lane(self) -> tuple[str, int]:
        return self.frame.source, self.frame.tag


@dataclass(slots=True)
class Totals:
    """Of the zipper since it started."""

    received: int = 0
    emitted: int = 0
    unobserved: int = 0
    """Frames with a tag that nobody observes."""
    dropped_memory: int = 0
    """Deliveries dropped because the shared memory for frames was full."""


def _nothing() -> None:
    """What happens when a frame nobody waits for is done."""


@dataclass(eq=False, slots=True)
class _Attached:
    observer: Observer[Ticket]
    deliver: Callable[[Ticket], None]
    in_memory: bool
    taken: set[Ticket] = field(default_factory=set)


class Zipper:
    """Routes frames between sources, handlers and the publisher; knows each of them only as an observer."""

    def __init__(self, ring: RingWriter, on_freed: Callable[[int], None] = lambda _key: None) -> None:
        self._ring = ring
        self._on_freed = on_freed
        self._router: Router[Ticket] = Router()
        self._attached: dict[str, _Attached] = {}
        self.totals = Totals()
        self.outstanding = 0
        """Frames that somebody still holds."""

    # --- observers -------------------------------------------------------------------------------------------

    def attach(
        self,
        name: str,
        tags: Iterable[int],
        capacity: int,
        deliver: Callable[[Ticket], None],
        *,
        in_memory: bool = False,
    ) -> Observer[Ticket]:
        """Call ``deliver`` with each frame of these tags, at most ``capacity`` unfinished at a time.

        ``in_memory``: the observer's process reads the payload from the ring (``ticket.ref`` is set).
        ``deliver`` must not raise and must, at once or later, lead to :meth:`finished`.
        """
        observer = self._router.attach(name, tags, capacity)
        self._attached[name] = _Attached(observer, deliver, in_memory)
        return observer

    def detach(self, name: str) -> None:
        """Forget an observer: what waited for it or was with it is released."""
        attached = self._attached.pop(name)
        for ticket in [*self._router.detach(name), *attached.taken]:
            self._release(ticket)

    def finished(self, name: str, ticket: Ticket) -> None:
        """An observer is done with a frame (silently nothing if it was detached meanwhile)."""
        attached = self._attached.get(name)
        if attached is None or ticket not in attached.taken:
            return
        attached.taken.remove(ticket)
        attached.observer.finish()
        self._release(ticket)
        self._pump(attached)

    @property
    def observers(self) -> dict[str, Observer[Ticket]]:
        """For status: counters by observer."""
        return dict(self._router.observers)

    # --- frames ----------------------------------------------------------------------------------------------

    def receive(self, frame: Frame, *, lossless: bool = False, on_done: Callable[[], None] = _nothing) -> None:
        """A frame from a source; ``on_done`` is called when every observer is done with it and its offspring."""
        self.totals.received += 1
        self._route(Ticket(frame, lossless, on_done))

    def emit(self, frame: Frame, parent: Ticket | None = None) -> None:
        """A frame that came of ``parent`` (None: of a remote peer's own accord)."""
        self.totals.emitted += 1
        if parent is None or not parent.lossless or not parent.holders:  # its observer may be detached by now
            self._route(Ticket(frame, lossless=False, on_done=_nothing))
            return
        parent.holders += 1  # the source's credit returns only when the offspring is done too
        self._route(Ticket(frame, lossless=True, on_done=lambda: self._release(parent)))

    def _route(self, ticket: Ticket) -> None:
        ticket.holders += 1
        self.outstanding += 1
        observers = self._router.observing(ticket.frame.tag)
        if not observers:
            self.totals.unobserved += 1
        for observer in observers:
            attached = self._attached[observer.name]
            if attached.in_memory and not self._in_memory(ticket):
                observer.counters.offered += 1
                observer.counters.dropped += 1
                self.totals.dropped_memory += 1
                continue
            ticket.holders += 1
            pushed_out = observer.offer(ticket)
            if pushed_out is not None:
                self._release(pushed_out)
            self._pump(attached)
        self._release(ticket)

    def _pump(self, attached: _Attached) -> None:
        while (ticket := attached.observer.take()) is not None:
            attached.taken.add(ticket)
            attached.deliver(ticket)

    def _in_memory(self, ticket: Ticket) -> bool:
        """Write the payload to shared memory, once; False where there is no room."""
        if ticket.ref is None:
            frame = ticket.frame
            ticket.ref = self._ring.write(frame.payload, frame.format, frame.width, frame.height)
        return ticket.ref is not None

    def _release(self, ticket: Ticket) -> None:
        ticket.holders -= 1
        if ticket.holders:
            return
        self.outstanding -= 1
        if ticket.ref is not None:
            self._ring.free(ticket.ref)
            self._on_freed(ticket.ref.key)
        ticket.on_done()
