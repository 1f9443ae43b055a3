"""The zipper without its network: frames in, deliveries to whoever observes them, frames that come of that.

Everything runs on one event loop and nothing here waits, so there are no locks.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from appliance.frame import Frame
from appliance.ipc.ring import FrameRef, RingWriter
from appliance.zipper.router import MARK, Observer, Router

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Ticket:
    """One frame on its way. Whoever needs it holds it; when nobody does any more, it is done.

    A shadow needs its bytes as others do, but nobody waits for what becomes of them there.
    """

    frame: Frame
    lossless: bool
    on_done: Callable[[], None]
    ref: FrameRef | None = None
    holders: int = 0
    """Without shadows: at none, the frame is done."""
    shadows: int = 0

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
    """Deliveries dropped because the shared memory for frames was full; those to shadows are not counted."""


def _nothing() -> None:
    """What happens when a frame nobody waits for is done."""


@dataclass(eq=False, slots=True)
class _Attached:
    deliver: Callable[[Ticket], None]
    in_memory: bool


class Zipper:
    """Routes frames between sources, handlers and the publisher; knows each of them only as an observer."""

    def __init__(self, ring: RingWriter, on_freed: Callable[[int], None] = lambda _key: None) -> None:
        self._ring = ring
        self._on_freed = on_freed
        self._router: Router[Ticket] = Router()
        self._attached: dict[Observer[Ticket], _Attached] = {}
        self.totals = Totals()
        self.outstanding = 0
        """Frames that are not done. What shadows have is not among them."""

    # --- observers -------------------------------------------------------------------------------------------

    def attach(
        self,
        name: str,
        tags: Iterable[int],
        capacity: int,
        deliver: Callable[[Ticket], None],
        *,
        in_memory: bool = False,
        shadow: bool = False,
    ) -> Observer[Ticket]:
        """Call ``deliver`` with each frame of these tags, at most ``capacity`` unfinished at a time.

        ``in_memory``: the observer's process reads the payload from the ring (``ticket.ref`` is set).
        ``deliver`` must not raise and must, at once or later, lead to :meth:`finished`.
        ``shadow``: of each lane it gets the newest frame, lossless or not, and no source waits for it.
        """
        observer = self._router.attach(name, tags, capacity, shadow=shadow)
        self._attached[observer] = _Attached(deliver, in_memory)
        return observer

    def observe(self, name: str, tags: Iterable[int]) -> None:
        """From now on an observer gets the frames of these tags, and no others."""
        self._router.observe(name, tags)

    def leave(self, name: str) -> None:
        """An observer gets no further frames. What it has it finishes; by its new name, the old one is free."""
        self._router.leave(name)

    def hand_over(self, name: str, shadow: str, capacity: int) -> None:
        """From one frame to the next, ``shadow`` is the observer ``name``. The one that was, if any, leaves.

        What was routed before is the old one's to answer: what waited for the shadow is dropped, and its owner
        withholds what becomes of the frames it has in hand.
        """
        for ticket in self._router.take_over(shadow, name, capacity):
            self._drop_shadow(ticket)

    def detach(self, name: str) -> None:
        """Forget an observer: what waited for it or was with it is released."""
        observer = self._router.observers[name]
        del self._attached[observer]
        release = self._drop_shadow if observer.shadow else self._release
        for ticket in self._router.detach(name):
            release(ticket)
        for ticket in observer.taken:
            self._release(ticket)
        for ticket in observer.shadowed:
            self._drop_shadow(ticket)

    def finished(self, name: str, ticket: Ticket) -> None:
        """An observer is done with a frame (silently nothing if it was detached meanwhile)."""
        observer = self._router.observers.get(name)
        if observer is None or not (ticket in observer.taken or ticket in observer.shadowed):
            return
        deliver = self._attached[observer].deliver
        release = self._release if ticket in observer.taken else self._drop_shadow
        observer.finish(ticket)
        release(ticket)  # which may have it detached
        _pump(observer, deliver)

    @property
    def observers(self) -> dict[str, Observer[Ticket]]:
        """For status, by name: those in service, without shadows and those that have left."""
        return {name: observer for name, observer in self._router.observers.items() if MARK not in name}

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
            attached = self._attached[observer]
            if attached.in_memory and not self._in_memory(ticket):
                observer.counters.offered += 1
                observer.counters.dropped += 1
                self.totals.dropped_memory += not observer.shadow
                continue
            self._offer(observer, ticket)
            _pump(observer, attached.deliver)
        self._release(ticket)

    def _offer(self, observer: Observer[Ticket], ticket: Ticket) -> None:
        pushed_out = observer.offer(ticket)
        if observer.shadow:
            ticket.shadows += 1
        else:
            ticket.holders += 1
        if pushed_out is not None:
            (self._drop_shadow if observer.shadow else self._release)(pushed_out)

    def _in_memory(self, ticket: Ticket) -> bool:
        """Write the payload to shared memory, once; False where there is no room."""
        if ticket.ref is None:
            frame = ticket.frame
            ticket.ref = self._ring.write(frame.payload, frame.format, frame.width, frame.height)
            if ticket.ref is None and self._shadows_make_room():
                ticket.ref = self._ring.write(frame.payload, frame.format, frame.width, frame.height)
        return ticket.ref is not None

    def _shadows_make_room(self) -> bool:
        """What only waits for a shadow takes no memory from others; whether there was anything."""
        waited = [ticket for observer in self._attached if observer.shadow for ticket in observer.clear()]
        for ticket in waited:
            self._drop_shadow(ticket)
        return bool(waited)

    def _release(self, ticket: Ticket) -> None:
        ticket.holders -= 1
        if ticket.holders:
            return
        self.outstanding -= 1
        self._free(ticket)
        ticket.on_done()

    def _drop_shadow(self, ticket: Ticket) -> None:
        ticket.shadows -= 1
        self._free(ticket)

    def _free(self, ticket: Ticket) -> None:
        """Give back the payload's memory, unless somebody can still read it."""
        if ticket.ref is None or ticket.holders or ticket.shadows:
            return
        self._ring.free(ticket.ref)
        self._on_freed(ticket.ref.key)


def _pump(observer: Observer[Ticket], deliver: Callable[[Ticket], None]) -> None:
    while (ticket := observer.take()) is not None:
        deliver(ticket)
