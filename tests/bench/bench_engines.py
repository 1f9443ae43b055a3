"""wasm3 against wasmtime, and what metering costs: ``python tests/bench/bench_engines.py``.

Figures of one run, so that they can be compared: of calls in this process, and of idle workers.
"""

import asyncio
import logging
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import msgspec

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "handlers"), str(TESTS / "sandbox")]

from guest_host import HANDLERS, MEMORY_BYTES, Guest, Picture  # noqa: E402
from guest_host import admit as admit_handler  # noqa: E402
from sandbox_bench import NOTHING, admit, assemble, bench, proc, spec  # noqa: E402

from appliance.sandbox.admission.binary import PAGE_BYTES  # noqa: E402
from appliance.sandbox.admission.layout import read  # noqa: E402
from appliance.sandbox.admission.rewrite import limited  # noqa: E402
from appliance.sandbox.admission.verdict import EngineName  # noqa: E402
from appliance.sandbox.engine import HostFunction, Instance, open_engine, wasm3_engine  # noqa: E402

ENGINES: tuple[EngineName, ...] = ("wasm3", "wasmtime")
GAS = 10**12
LARGEST = 256
"""Pages of memory that are reset."""
CALLS_IN_ONE = 1000
ROUNDS = 10

SMALL = """(module (import "appliance" "frame_info" (func $host (param i32) (result i32))) (memory {pages} {pages})
  (func (export "handle") (result i32) i32.const 0)
  (func (export "calls") (result i32) (local $n i32) (loop $l
    (drop (call $host (i32.const 0)))
    (br_if $l (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const {calls})))) i32.const 0))"""


def microseconds(work: Callable[[], object], times: int = 100) -> float:
    """Of one call: the best of ROUNDS medians, so that what else the machine does shows little."""
    return min(_median(work, times) for _ in range(ROUNDS))


def _median(work: Callable[[], object], times: int) -> float:
    spent = []
    for _ in range(times):
        started = time.perf_counter_ns()
        work()
        spent.append(time.perf_counter_ns() - started)
    return statistics.median(spent) / 1000


def small(engine: EngineName, pages: int) -> Instance:
    module = assemble(SMALL.format(pages=pages, calls=CALLS_IN_ONE))
    limit = LARGEST * PAGE_BYTES
    instance = open_engine(engine).load(admit(module, engine, limit, restorable=True), limit)
    instance.link([HostFunction("appliance", "frame_info", "i(i)", lambda _: 0)])
    instance.allow(GAS)
    return instance


def called(instance: Instance, name: str) -> Callable[[], int]:
    function = instance.find(name)
    assert function is not None
    return function


def fresh(instance: Instance) -> None:
    """What a frame costs that wants an instance for itself, without the frame."""
    instance.allow(GAS)
    instance.reset()
    called(instance, "handle")


def motion(guest: Guest) -> float:
    """Microseconds of the handler for a picture, with its pixels ready."""
    chosen = random.Random(1)
    pictures = [chosen.randbytes(160 * 120) for _ in range(4)]
    frames = [Picture(pixels=lambda _format, _width, _height, picture=picture: picture) for picture in pictures]

    def handle() -> None:
        assert guest.handle(frames[len(guest.emits) % len(frames)]) == 0

    return microseconds(handle)


class Unmetered(wasm3_engine.Wasm3Instance):
    """An instance of a module as it came."""

    def allow(self, gas: int) -> None:
        pass

    def gas_used(self) -> int:
        return 0


def unmetered(module: bytes) -> Guest:
    code = limited(read(module), MEMORY_BYTES // PAGE_BYTES)
    with mock.patch.object(wasm3_engine, "Wasm3Instance", Unmetered):
        return Guest(module, admitted=msgspec.structs.replace(admit_handler(module), code=code))


async def pss(engine: EngineName) -> float:
    """MB of an idle worker, with its half of what it shares with its zygote."""
    async with bench(spec(NOTHING, engine=engine)) as handler:
        pid = await handler.running()
        await handler.handle()
        (line,) = [line for line in proc(pid, "smaps_rollup").splitlines() if line.startswith("Pss:")]
    return int(line.split()[1]) / 1024


async def started(engine: EngineName) -> float:
    """Milliseconds from a worker's death to the next one's guest being ready, the best of five."""
    async with bench(spec(NOTHING, engine=engine)) as handler:
        await handler.running()
        times = []
        for _ in range(5):
            before = handler.host.status
            assert before.pid is not None
            begun = time.perf_counter()
            os.kill(before.pid, signal.SIGKILL)
            while handler.host.status.pid in (None, before.pid) or handler.host.status.state != "running":
                await asyncio.sleep(0.0005)
            times.append(time.perf_counter() - begun)
            await handler.handle()
    return min(times) * 1000


def main() -> None:
    logging.disable()  # of the workers that are killed
    module = (HANDLERS / "motion" / "handler.wasm").read_bytes()
    rows: list[tuple[str, float, float]] = [
        ("motion, a picture (µs)", *(motion(Guest(module, engine=engine)) for engine in ENGINES)),
        ("an empty call (µs)", *(microseconds(called(small(engine, 1), "handle")) for engine in ENGINES)),
        (
            "a call of the host (µs)",
            *(microseconds(called(small(engine, 1), "calls")) / CALLS_IN_ONE for engine in ENGINES),
        ),
    ]
    for pages in (1, 16, LARGEST):
        instances = [small(engine, pages) for engine in ENGINES]
        rows.append(
            (f"fresh instance, {pages} pages (µs)", *(microseconds(partial(fresh, each)) for each in instances))
        )
    rows.append(("memory of a worker, PSS (MB)", *(asyncio.run(pss(engine)) for engine in ENGINES)))
    rows.append(("a worker replaced (ms)", *(asyncio.run(started(engine)) for engine in ENGINES)))
    write = sys.stdout.write
    write(f"{'':34}{'wasm3':>10}{'wasmtime':>10}{'wasm3 / wasmtime':>20}\n")
    for name, first, second in rows:
        write(f"{name:34}{first:10.2f}{second:10.2f}{first / second:20.3g}\n")
    plain = motion(unmetered(module))
    write(f"metering of motion under wasm3: {rows[0][1]:.0f} µs, {plain:.0f} without: {rows[0][1] / plain:.2f}x\n")


if __name__ == "__main__":
    main()
