"""One handler in its sandbox, without cameras, zipper and broker: one frame after another is given to it.

Worker, limits, lockdown and models are those of the appliance.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from appliance.config import InferenceConfig
from appliance.errors import HandlerError
from appliance.frame import Frame
from appliance.inference.broker import Broker
from appliance.ipc.ring import RingWriter
from appliance.sandbox.admission.admit import Admission
from appliance.sandbox.guest_models import GuestModelStore
from appliance.sandbox.host import HandlerHost
from appliance.sandbox.messages import Job
from appliance.sandbox.session import Finished
from appliance.sandbox.spawning import Zygote
from appliance.sandbox.spec import HandlerSpec

LOOK_SECONDS = 0.02
"""A handler that is being started is looked at so often."""


class Player:
    """Gives frames to one handler, by :func:`playing`."""

    def __init__(self, ring: RingWriter, broker: Broker) -> None:
        self._ring = ring
        self._broker = broker
        self._finished: asyncio.Future[Finished]
        self.host: HandlerHost

    async def started(self) -> None:
        """Until the handler waits for frames; HandlerError where it cannot be started, at the first try."""
        while (status := self.host.status).state != "running":
            if status.last_failure is not None:
                raise HandlerError(f"{self.host.spec.name} cannot be started: {status.last_failure.message}")
            await asyncio.sleep(LOOK_SECONDS)

    async def play(self, frame: Frame) -> Finished:
        """Have the handler deal with a frame; not while it deals with another."""
        ref = self._ring.write(frame.payload, frame.format, frame.width, frame.height)
        if ref is None:
            raise AssertionError("the ring has room for the largest frame")
        self._finished = asyncio.get_running_loop().create_future()
        try:
            self.host.submit(Job(ref, frame.tag, frame.source, frame.seq, frame.captured_ns))
            return await self._finished
        finally:
            self._broker.forget(ref.key)
            self._ring.free(ref)

    def finish(self, finished: Finished) -> None:
        if not self._finished.done():
            self._finished.set_result(finished)


@asynccontextmanager
async def playing(
    spec: HandlerSpec,
    inference: InferenceConfig,
    ring_bytes: int,
    *,
    state: Mapping[str, bytes] | None = None,
    measure: bool = False,
) -> AsyncIterator[Player]:
    """A handler that waits for frames of up to ``ring_bytes``. Call it in the main thread.

    ``state`` is the guest's keys and values to begin with; with ``measure`` the worker tells how large its memory is.
    """
    with RingWriter(ring_bytes) as ring, TemporaryDirectory() as directory:
        async with Zygote(ring.fd) as zygote, Broker(ring.fd, inference.timeout_seconds) as broker:
            player = Player(ring, broker)
            player.host = HandlerHost(
                spec,
                zygote,
                broker,
                player.finish,
                admission=Admission(Path(directory)),
                guest_models=GuestModelStore(Path(directory) / "models", inference),
                state=state,
                measure=measure,
            )
            async with player.host:
                yield player
