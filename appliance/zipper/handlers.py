"""A local handler as an observer: frames become jobs for its worker, what it emits becomes frames again."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from appliance.frame import PICTURE_FORMATS, Frame, Producer
from appliance.inference.broker import Broker
from appliance.inference.messages import View
from appliance.sandbox.capsule import Crash, Handled, within_bounds
from appliance.sandbox.failure import FAULTS, Failure
from appliance.sandbox.guest_models import GuestModelStore
from appliance.sandbox.host import Admits, HandlerHost, HandlerStatus
from appliance.sandbox.messages import Job
from appliance.sandbox.session import Finished
from appliance.sandbox.spawning import Zygote
from appliance.sandbox.spec import HandlerSpec
from appliance.zipper.core import Ticket, Zipper
from appliance.zipper.router import Counters, Observer, shadow_of

log = logging.getLogger(__name__)

DRAIN_SECONDS = 5.0
"""Beyond its deadline, what a handler that leaves may take for each frame that it has left; models take time, too."""
SHADOW_CAPACITY = 1
"""Frames in a shadow's hands: each holds memory that those in service may need."""


@dataclass(frozen=True, slots=True)
class _InHand:
    ticket: Ticket
    delivered_ns: int
    shadowed: bool
    """Another answers it."""


class LocalHandler:
    """``async with LocalHandler(…)``: observes while the block lasts, or until :meth:`leave`.

    ``quarantined`` is the failure for which it may not run until it is released. ``on_crash`` gets what is there to
    understand a failure by: at the 1st, 2nd, 4th, 8th … of a kind. ``state`` is what the guest begins with. A
    ``shadow`` is given frames beside the handler of its name, and what it emits is withheld, until :meth:`go_live`.
    """

    def __init__(
        self,
        spec: HandlerSpec,
        zipper: Zipper,
        zygote: Zygote,
        broker: Broker,
        *,
        admission: Admits,
        guest_models: GuestModelStore | None = None,
        quarantined: Failure | None = None,
        on_crash: Callable[[Crash], None] = lambda _: None,
        state: Mapping[str, bytes] | None = None,
        shadow: bool = False,
    ) -> None:
        self.spec = spec
        self.shadow = shadow
        self._zipper = zipper
        self._broker = broker
        self._host = HandlerHost(
            spec,
            zygote,
            broker,
            self._finished,
            admission=admission,
            guest_models=guest_models,
            quarantined=quarantined,
            state=state,
        )
        self._on_crash = on_crash
        self._handled: tuple[Handled, ...] = ()
        self._state = self._host.guest_state
        self.failed: Counter[str] = Counter()
        """Frames of its name that came to no good, by outcome."""
        self._in_hand: dict[int, _InHand] = {}
        self._ahead = [(model.model, View(fit=model.fit)) for model in spec.models if model.ahead]
        self._observer: Observer[Ticket] | None = None
        self._detached = False
        self._leaving = asyncio.Event()
        self._progressed = asyncio.Event()

    # --- life ------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self.attach()
        await self._host.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()
        await self._host.__aexit__(kind, error, trace)

    def attach(self) -> None:
        """Observe, if it does not yet: what comes before its worker is up waits. ValueError where the name is taken."""
        if self._observer is None:
            name = shadow_of(self.spec.name) if self.shadow else self.spec.name
            capacity = SHADOW_CAPACITY if self.shadow else HandlerHost.CAPACITY
            self._observer = self._zipper.attach(
                name, self.spec.observes, capacity, self._deliver, in_memory=True, shadow=self.shadow
            )

    def detach(self) -> None:
        """Observe no more; frames it still has are dropped. Once is enough."""
        if self._observer is not None and not self._detached:
            self._detached = True
            self._zipper.detach(self._observer.name)

    def go_live(self, predecessor: "LocalHandler | None" = None) -> None:
        """A shadow goes into service, from one frame to the next: the handler of its name leaves."""
        self._zipper.hand_over(self.spec.name, self._attached.name, HandlerHost.CAPACITY)
        self.shadow = False
        if predecessor is not None:
            self.failed = predecessor.failed  # of the name, and the old one still adds to it
            predecessor._leaving.set()  # noqa: SLF001 - one of its kind

    def leave(self) -> None:
        """Observe no more; frames it still has are handled. Its name is free."""
        if not (self._leaving.is_set() or self._detached):
            self._leaving.set()
            self._zipper.leave(self._attached.name)

    async def drain(self) -> None:
        """Wait until it was told to leave and has answered what it had, or until that comes to a standstill."""
        await self._leaving.wait()
        patience = self.spec.limits.deadline_ms / 1000 + DRAIN_SECONDS
        while self._attached.busy:
            self._progressed.clear()
            try:
                async with asyncio.timeout(patience):
                    await self._progressed.wait()
            except TimeoutError:
                log.warning("event=handler_not_drained handler=%s standstill_s=%.1f", self.spec.name, patience)
                return

    @property
    def _attached(self) -> Observer[Ticket]:
        assert self._observer is not None, "it was never attached"
        return self._observer

    # --- what is known of it ---------------------------------------------------------------------------------

    @property
    def status(self) -> HandlerStatus:
        return self._host.status

    @property
    def guest_state(self) -> Mapping[str, bytes]:
        """The guest's keys and values after the last frame that went well."""
        return self._host.guest_state

    @property
    def counters(self) -> Counters:
        """Of frames that it was offered: by its name, or as a shadow."""
        return self._attached.counters

    def release(self) -> None:
        """Out of quarantine."""
        self._host.release()

    def written(self, failure: Failure, capsule: str) -> None:
        """What ``on_crash`` was told of is in the file of that name."""
        self._host.written(failure, capsule)

    # --- frames ----------------------------------------------------------------------------------------------

    def _deliver(self, ticket: Ticket) -> None:
        frame, ref = ticket.frame, ticket.ref
        if ref is None:
            raise AssertionError("an observer in memory got a frame that is not")
        if frame.format in PICTURE_FORMATS and self._host.accepting:
            for model, view in self._ahead:  # inference begins now, the guest asks later
                self._broker.begin(model, ref, view)
        self._in_hand[ref.key] = _InHand(ticket, time.time_ns(), self.shadow)
        self._host.submit(Job(ref, frame.tag, frame.source, frame.seq, frame.captured_ns))

    def _finished(self, finished: Finished) -> None:
        in_hand = self._in_hand.pop(finished.job.frame.key)
        self._remember(in_hand.ticket.frame, finished)
        if not in_hand.shadowed:
            self._answer(finished, in_hand)
        self._zipper.finished(self._attached.name, in_hand.ticket)
        self._progressed.set()

    def _answer(self, finished: Finished, in_hand: _InHand) -> None:
        if finished.outcome != "ok":
            self.failed[finished.outcome] += 1
        if finished.emits:
            producer = Producer(self.spec.name, self.spec.version, finished.models)
            origin = timed(in_hand.ticket.frame, finished, in_hand.delivered_ns, time.time_ns())
            for emit in finished.emits:
                self._zipper.emit(origin.derive(emit.tag, emit.format, emit.payload, producer), in_hand.ticket)

    def _remember(self, frame: Frame, finished: Finished) -> None:
        """Keep the last frames at hand, and hand them over when the guest has failed on the newest."""
        if finished.outcome in ("unavailable", "stopped"):
            return  # the guest has not seen it
        self._handled = within_bounds((*self._handled, Handled(frame, self._state)))
        self._state = self._host.guest_state
        if finished.outcome not in FAULTS:
            return
        status = self._host.status
        count = status.faults[finished.outcome]
        if count & (count - 1) == 0 and status.last_failure is not None:
            self._on_crash(Crash(self.spec, status.last_failure, self._handled))


def timed(frame: Frame, finished: Finished, delivered_ns: int, now_ns: int) -> Frame:
    """The frame with the handler's stages added to its history.

    What is neither decoding, inference nor the guest itself was waiting: for the router, for the worker to be
    done with the frame before, for the model. Inference begins before the guest asks, and models run beside each
    other: where such stages overlap, nothing is left to have been waiting, and they add up to more than has passed.
    """
    queued = frame.after("queue", delivered_ns)
    elapsed = max(0, (now_ns - delivered_ns) // 1000)
    known = {"decode": finished.decode_us, "inference": finished.invoke_us, "handler": finished.guest_us}
    waited = max(0, elapsed - sum(known.values()))
    spent = {**queued.spent, "queue": queued.spent["queue"] + waited}
    for stage, microseconds in known.items():
        spent[stage] = spent.get(stage, 0) + microseconds
    return replace(queued, spent=spent)
