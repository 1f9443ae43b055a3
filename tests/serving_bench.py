"""Serving as the appliance has it, with real workers, and a camera that waits for its credits."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from sandbox_bench import TAG, JudgedHere, until

from appliance.config import InferenceConfig
from appliance.faults import FaultKeeper
from appliance.frame import Frame
from appliance.inference.broker import Broker
from appliance.ipc.ring import RingWriter
from appliance.sandbox.guest_models import GuestModelStore
from appliance.sandbox.spawning import Zygote
from appliance.serving import Serving
from appliance.zipper.core import Ticket, Zipper

WINDOW = 8
"""Lossless frames under way at once."""


@dataclass
class Stage:
    """A zipper whose results are kept, and what is served in it."""

    zipper: Zipper
    serving: Serving
    keeper: FaultKeeper
    ring: RingWriter
    zygote: Zygote
    sent: int = 0
    done: int = 0
    results: list[Frame] = field(default_factory=list)

    def send(self, payload: bytes = b"", on_done: Callable[[], None] | None = None) -> None:
        """A lossless frame; ``on_done`` instead of its being counted in ``done``."""
        seq = self.sent
        self.sent += 1
        frame = Frame(1, "camera", seq, 1_700_000_000_000_000_000 + seq, "bytes", payload)
        self.zipper.receive(frame, lossless=True, on_done=on_done or self._count)

    async def see(self, payload: bytes = b"") -> None:
        """Send a frame, and wait until all are done."""
        self.send(payload)
        await self.all_done()

    async def film(self) -> None:
        """Lossless frames as fast as credits allow, until cancelled."""
        while True:
            await asyncio.sleep(0.001)  # where nobody observes, frames are done at once
            while self.sent - self.done < WINDOW:
                self.send()
                await asyncio.sleep(0)

    async def all_done(self) -> None:
        await until(lambda: self.done == self.sent)

    async def more(self, frames: int = 20) -> None:
        """Wait until so many more frames have gone through."""
        wanted = self.done + frames
        await until(lambda: self.done >= wanted)

    async def running(self, name: str = "guest", *, shadow: bool = False) -> int:
        """The pid of a handler's worker, once its guest is initialised."""
        handler = (self.serving.shadows if shadow else self.serving.live)[name]
        await until(lambda: handler.status.state == "running")
        assert handler.status.pid is not None
        return handler.status.pid

    def answers(self) -> Counter[int]:
        """How often each frame was answered."""
        return Counter(frame.seq for frame in self.results)

    def versions(self) -> list[str]:
        """Who answered, by the number of the frame."""
        return [frame.producer.version for frame in sorted(self.results, key=lambda frame: frame.seq) if frame.producer]

    def _count(self) -> None:
        self.done += 1


@contextlib.asynccontextmanager
async def stage(directory: Path, on_change: Callable[[], None] = lambda: None) -> AsyncIterator[Stage]:
    """Nothing is left in memory when it ends."""
    with RingWriter(1 << 20) as ring:
        async with Zygote(ring.fd) as zygote, Broker(ring.fd) as broker:
            zipper = Zipper(ring, broker.forget)
            async with FaultKeeper(directory / "capsules", directory / "quarantine") as keeper:
                serving = Serving(
                    zipper,
                    zygote,
                    broker,
                    admission=JudgedHere(),
                    guest_models=GuestModelStore(directory / "models", InferenceConfig()),
                    faults=keeper,
                    on_change=on_change,
                )
                async with serving:
                    set_up = Stage(zipper, serving, keeper, ring, zygote)

                    def keep(ticket: Ticket) -> None:
                        set_up.results.append(ticket.frame)
                        zipper.finished("sink", ticket)

                    zipper.attach("sink", {TAG}, 1, keep)
                    yield set_up
        assert (ring.used, zipper.outstanding) == (0, 0)
