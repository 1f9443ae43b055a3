"""What the sandbox costs: the way to a worker and back, and the lockdown. Ratios are measured side by side.

``PYTHONPATH=.:tests/sandbox python tests/bench/bench_sandbox.py [--frames N]``
"""

import argparse
import asyncio
import os
import signal
import socket
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter_ns

from sandbox_bench import FakeInference, JudgedHere, admit, guest, spec

from appliance.ipc.packets import BlockingChannel, socket_pair
from appliance.ipc.report import Lockdown
from appliance.ipc.ring import FrameRef, RingWriter
from appliance.manifest import EngineName
from appliance.sandbox import lockdown, worker
from appliance.sandbox.engine import wasm3_engine  # noqa: F401 - as the zygote does, before it forks
from appliance.sandbox.engine.calibration import gas_per_ms
from appliance.sandbox.host import HandlerHost
from appliance.sandbox.messages import Done, FromWorker, Job, Loaded, Setup, Started
from appliance.sandbox.session import Finished
from appliance.sandbox.spawning import Zygote

FRAME_BYTES = 50_000
ROUNDS = 7
NOTHING = guest("i32.const 0")
READS = guest(f"(drop (call $frame_read (i32.const 0) (i32.const 0) (i32.const {FRAME_BYTES}))) i32.const 0")
MEMORY_BYTES = 1 << 20


class Worker:
    """One worker of ours, forked here, spoken to without asyncio."""

    def __init__(self, ring: RingWriter, module: bytes, engine: EngineName, *, locked: bool = True) -> None:
        ours, theirs = socket_pair()
        pid = os.fork()
        if pid == 0:
            self._become_worker(theirs, os.dup(ring.fd), locked=locked)
        theirs.close()
        self.pid = pid
        self._sock = ours
        self._channel: BlockingChannel[FromWorker] = BlockingChannel(ours, FromWorker)
        admitted = admit(module, engine, MEMORY_BYTES)
        started = perf_counter_ns()
        self._channel.send(
            Setup("bench", admitted, "native", [], [], {}, {}, MEMORY_BYTES, 600, engine=engine, deadline_ms=1000)
        )
        assert isinstance(self._channel.receive(), Loaded)
        assert isinstance(self._channel.receive(), Started)
        self.start_ms = (perf_counter_ns() - started) / 1e6

    @staticmethod
    def _become_worker(sock: socket.socket, ring_fd: int, *, locked: bool) -> None:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 2)
        if not locked:
            worker.lock_down = lambda *_: Lockdown()  # type: ignore[attr-defined, assignment]
        os._exit(worker.run(sock, ring_fd))

    def round_trip_us(self, ref: FrameRef, frames: int) -> float:
        """Median from sending a job to its Done."""
        times = []
        for seq in range(frames):
            job = Job(ref, 1, "camera", seq, seq)
            started = perf_counter_ns()
            self._channel.send(job)
            done = self._channel.receive()
            times.append(perf_counter_ns() - started)
            assert isinstance(done, Done)
        return statistics.median(times) / 1000

    def close(self) -> None:
        self._sock.close()
        os.kill(
            self.pid, signal.SIGKILL
        )  # those forked later have our end of its socket, too: it would not see it close
        os.waitpid(self.pid, 0)


@contextmanager
def workers(ring: RingWriter, module: bytes, **kinds: dict[str, object]) -> Iterator[dict[str, Worker]]:
    """By name, each with its own ``engine`` and ``locked``."""
    made = {name: Worker(ring, module, **kind) for name, kind in kinds.items()}  # type: ignore[arg-type]
    try:
        yield made
    finally:
        for each in made.values():
            each.close()


def direct(ring: RingWriter, ref: FrameRef, frames: int) -> None:
    """In turns, so that what else the machine does meets all of them."""
    print(f"round trip to a worker and back, {FRAME_BYTES} byte frame, median us (bar for the first: <= 60)")
    kinds: dict[str, dict[str, object]] = {
        "wasm3": {"engine": "wasm3"},
        "wasm3, not locked down": {"engine": "wasm3", "locked": False},
        "wasmtime": {"engine": "wasmtime"},
    }
    for what, module in (("empty handler", NOTHING), ("reads the frame", READS)):
        with workers(ring, module, **kinds) as made:
            rounds = [{name: each.round_trip_us(ref, frames) for name, each in made.items()} for _ in range(ROUNDS)]
        best = {name: min(one[name] for one in rounds) for name in made}
        for name, value in best.items():
            print(f"  {what:<18}{name:<26}{value:8.1f}   {value / best['wasm3']:.2f} x wasm3")
        ratios = [one["wasm3"] / one["wasm3, not locked down"] for one in rounds]
        print(f"  {what:<18}locked / not locked, median of {ROUNDS} rounds: {statistics.median(ratios):.2f}")


def lockdown_ms(ring: RingWriter) -> None:
    """What a worker's start takes with the lockdown and without, from its setup to its guest's end of ``init``."""
    kinds = {True: [], False: []}  # type: dict[bool, list[float]]
    for _ in range(15):
        for locked, times in kinds.items():
            one = Worker(ring, NOTHING, "wasm3", locked=locked)
            times.append(one.start_ms)
            one.close()
    locked_ms, free_ms = (statistics.median(kinds[locked]) for locked in (True, False))
    print(f"start of a worker, median ms: locked down {locked_ms:.2f}, not locked down {free_ms:.2f}")


class Busy:
    """Keeps some frames in flight at a handler until all are handled."""

    def __init__(self, ref: FrameRef, frames: int, in_flight: int) -> None:
        self._jobs = iter([Job(ref, 1, "camera", seq, seq) for seq in range(frames)])
        self._left = frames
        self._in_flight = in_flight
        self._done = asyncio.Event()

    async def us_per_frame(self, zygote: Zygote) -> float:
        self._host = HandlerHost(spec(NOTHING), zygote, FakeInference(), self._finished, admission=JudgedHere())
        frames = self._left
        async with self._host:
            started = perf_counter_ns()
            for _ in range(self._in_flight):
                self._host.submit(next(self._jobs))
            await self._done.wait()
            return (perf_counter_ns() - started) / frames / 1000

    def _finished(self, one: Finished) -> None:
        assert one.outcome == "ok"
        self._left -= 1
        if (job := next(self._jobs, None)) is not None:
            self._host.submit(job)
        elif not self._left:
            self._done.set()


async def through_the_host(ring: RingWriter, ref: FrameRef, frames: int) -> None:
    """As the zipper does it, with one frame in flight, and with two; the start of the worker is in it."""
    async with Zygote(ring.fd) as zygote:
        for in_flight in (1, 2):
            each = await Busy(ref, frames * 5, in_flight).us_per_frame(zygote)
            print(f"through the zipper's host, empty handler, {in_flight} in flight: {each:.1f} us a frame")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=3000)
    frames = parser.parse_args().frames
    lockdown.prepare()
    gas_per_ms("wasm3")
    with RingWriter(1 << 20) as ring:
        ref = ring.write(bytes(FRAME_BYTES), "bytes", 0, 0)
        assert ref is not None
        direct(ring, ref, frames)
        lockdown_ms(ring)
        asyncio.run(through_the_host(ring, ref, frames))


if __name__ == "__main__":
    main()
