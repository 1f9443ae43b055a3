"""Two handlers of authors who have never met, on one camera: the real router, zygote, workers and models' broker.

The camera keeps its pace, whatever the handlers do. What happens to the bad one is noted with its time; what the good
one lost is counted.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, time_ns
from typing import Any

from hostile_set import POISON, Hostile
from sandbox_bench import TAG, guest, spec, until

from appliance.config import InferenceConfig
from appliance.frame import Frame
from appliance.inference.broker import Broker
from appliance.ipc.ring import RingWriter
from appliance.sandbox.admission.admit import Admission
from appliance.sandbox.guest_models import GuestModelStore
from appliance.sandbox.session import Finished
from appliance.sandbox.spawning import Zygote
from appliance.sandbox.spec import HandlerSpec
from appliance.zipper.core import Ticket, Zipper
from appliance.zipper.handlers import LocalHandler

FRAMES_PER_SECOND = 100.0
GOOD = guest(f"(call $emit (i32.const {TAG + 1}) (i32.const 6) (i32.const 0) (i32.const 0))")
"""Emits something about every frame."""


@dataclass(frozen=True)
class Outcome:
    """How a frame of the bad handler ended, and when; seconds."""

    finished: Finished
    delivered: float
    at: float


class Watched(LocalHandler):
    """A local handler that notes what becomes of its frames."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.outcomes: list[Outcome] = []
        self._delivered: dict[int, float] = {}

    def _deliver(self, ticket: Ticket) -> None:
        self._delivered[ticket.frame.seq] = monotonic()
        super()._deliver(ticket)

    def _finished(self, finished: Finished) -> None:
        self.outcomes.append(Outcome(finished, self._delivered[finished.job.seq], monotonic()))
        super()._finished(finished)


@dataclass
class Neighbourhood:
    """A camera with its two observers."""

    zipper: Zipper
    zygote: Zygote
    bad: Watched
    good: Watched
    sent: int = 0
    poisoned: list[int] = field(default_factory=list)
    _poison: int = 0

    def poison(self, frames: int = 1) -> None:
        """The next frames are poisoned."""
        self._poison += frames

    async def film(self) -> None:
        """Frames at an even pace, until cancelled."""
        started = monotonic()
        while True:
            payload = (POISON if self._poison else b"\0") + bytes(200)
            if self._poison:
                self._poison -= 1
                self.poisoned.append(self.sent)
            self.zipper.receive(Frame(1, "camera", self.sent, time_ns(), "bytes", payload))
            self.sent += 1
            await asyncio.sleep(max(0.0, started + self.sent / FRAMES_PER_SECOND - monotonic()))

    def of_poison(self) -> list[Outcome]:
        """What became of poisoned frames."""
        return [one for one in self.bad.outcomes if one.finished.job.seq in self.poisoned]

    async def served(self, more: int = 3) -> None:
        """Wait until the bad handler has handled so many more frames well."""
        wanted = self.well() + more
        await until(lambda: self.well() >= wanted)

    def well(self) -> int:
        return sum(one.finished.outcome == "ok" for one in self.bad.outcomes)

    async def seen_by_neighbour(self, more: int = 10) -> None:
        wanted = len(self.good.outcomes) + more
        await until(lambda: len(self.good.outcomes) >= wanted)

    def lost(self) -> int:
        """Frames that the good one did not get, or not well."""
        dropped = self.zipper.observers["good"].counters.dropped
        return dropped + sum(one.finished.outcome != "ok" for one in self.good.outcomes)


def hostile_spec(hostile: Hostile) -> HandlerSpec:
    return spec(hostile.module, models=0, name="bad", limits=hostile.limits, **hostile.changes)


@asynccontextmanager
async def neighbourhood(bad: HandlerSpec, state: Path) -> AsyncIterator[Neighbourhood]:
    """``bad`` beside a good handler, with the camera running; nothing of either is left over at the end."""
    async with AsyncExitStack() as stack:
        ring = stack.enter_context(RingWriter(8 << 20))
        broker = Broker(ring.fd)
        zipper = Zipper(ring, broker.forget)
        zygote = await stack.enter_async_context(Zygote(ring.fd))
        await stack.enter_async_context(broker)
        good = spec(GOOD, models=0, name="good", emits={TAG + 1: True})
        admission = Admission(state / "modules")
        models = GuestModelStore(state / "models", InferenceConfig())
        handlers = [
            await stack.enter_async_context(
                Watched(one, zipper, zygote, broker, admission=admission, guest_models=models)
            )
            for one in (good, bad)
        ]
        await until(lambda: handlers[0].status.state == "running" and handlers[1].status.state != "starting")
        place = Neighbourhood(zipper, zygote, good=handlers[0], bad=handlers[1])
        camera = asyncio.create_task(place.film())
        try:
            yield place
        finally:
            camera.cancel()
            with contextlib.suppress(asyncio.CancelledError):  # what it failed with otherwise is to be seen
                await camera
