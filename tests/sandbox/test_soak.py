"""A million frames through one handler: memory stays flat, and no frame is lost when a worn worker is replaced."""

import asyncio
import os
from collections.abc import Iterator

import pytest
from sandbox_bench import FakeInference, JudgedHere, guest, spec

from appliance.device.memory import proportional_kb
from appliance.ipc.ring import FrameRef, RingWriter
from appliance.sandbox.host import HandlerHost
from appliance.sandbox.messages import Job
from appliance.sandbox.session import Finished
from appliance.sandbox.spawning import Zygote

PATIENCE_SECONDS = 1200.0
SAMPLE_FRAMES = 10_000
"""Memory is looked at so often."""
GROWTH_KB = 6144
"""What the zipper's process may grow by in the second half: its allocator takes some 4 MB with a new worker, once."""
WORKER_KB = 32 << 10
"""What a worker may ever have: its share of the zygote, and what wasm3's binding leaks until it is replaced."""

EMPTY = guest("i32.const 0")
ONE_CALL = guest("(drop (call $now_ns)) i32.const 0")
"""Leaks a little with every frame."""


class Soak:
    """Keeps as many frames in flight as a handler takes; keeps the books."""

    def __init__(self, frames: int, ref: FrameRef) -> None:
        self.frames = frames
        self.handled = 0
        self.wrong: list[Finished] = []
        self.own_kb: list[int] = []
        self.worker_kb: list[int] = []
        self.done = asyncio.Event()
        self.host: HandlerHost
        self._jobs: Iterator[Job] = (Job(ref, 1, "camera", seq, seq) for seq in range(frames))

    def submit_next(self) -> None:
        job = next(self._jobs, None)
        if job is not None:
            self.host.submit(job)

    def finished(self, finished: Finished) -> None:
        if finished.outcome != "ok" or finished.job.seq != self.handled:
            self.wrong.append(finished)
        self.handled += 1
        if self.handled % SAMPLE_FRAMES == 0:
            self._sample()
        if self.handled == self.frames:
            self.done.set()
        self.submit_next()

    def _sample(self) -> None:
        self.own_kb.append(proportional_kb(os.getpid()))
        if self.host.status.pid:
            self.worker_kb.append(proportional_kb(self.host.status.pid))


@pytest.mark.parametrize(
    "frames", [pytest.param(50_000), pytest.param(1_000_000, marks=pytest.mark.slow)], ids=["short", "million"]
)
@pytest.mark.parametrize(
    "module", [pytest.param(EMPTY, marks=pytest.mark.slow), pytest.param(ONE_CALL)], ids=["empty", "one-call"]
)
async def test_memory_stays_flat_and_no_frame_is_lost(
    module: bytes, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if frames < 1_000_000:  # so that workers are worn, and replaced, in the short one too
        monkeypatch.setattr("appliance.sandbox.host.CPU_SECONDS", 1)
    with RingWriter(1 << 20) as ring:
        ref = ring.write(bytes(50_000), "bytes", 0, 0)
        assert ref is not None
        async with Zygote(ring.fd) as zygote:
            soak = Soak(frames, ref)
            soak.host = HandlerHost(spec(module), zygote, FakeInference(), soak.finished, admission=JudgedHere())
            async with soak.host as host, asyncio.timeout(PATIENCE_SECONDS):
                for _ in range(HandlerHost.CAPACITY):
                    soak.submit_next()
                await soak.done.wait()
                status = host.status
    assert soak.wrong == []
    assert soak.handled == frames
    assert (status.handled, status.restarts, dict(status.faults)) == (frames, 0, {})
    assert status.recycled > 0 or module is EMPTY
    if frames == 1_000_000:  # the short one is within the noise of all the tests before it
        assert soak.own_kb[-1] - soak.own_kb[len(soak.own_kb) // 2] < GROWTH_KB
    assert max(soak.worker_kb) < WORKER_KB
