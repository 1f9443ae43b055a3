"""What a frame costs an empty program, beside an empty native handler: each in its own worker, taking turns.

``PYTHONPATH=.:tests/sandbox:tests/sandbox/abi python tests/bench/bench_programs.py [--rounds N] [--frames N]``
"""

import argparse
import asyncio
import statistics
from contextlib import AsyncExitStack
from time import perf_counter_ns

from guest_builds import c_library, c_program, go_program, rust_program
from sandbox_bench import NOTHING, Bench, assemble, bench, spec

from appliance.manifest import Limits
from appliance.sandbox.messages import CommandSpec
from appliance.sandbox.spec import HandlerSpec

PAYLOAD = b"0" * 50_000
NATIVE = "native, empty"


def _program(module: bytes, *words: str) -> HandlerSpec:
    return spec(
        module,
        models=0,
        abi="command",
        command=CommandSpec(["program", *words], "frame.dat"),
        limits=Limits(deadline_ms=20_000, memory_mb=16),
    )


def candidates() -> dict[str, HandlerSpec]:
    """By what is shown."""
    limits = Limits(deadline_ms=5000, memory_mb=16)
    return {
        NATIVE: spec(NOTHING, models=0),
        "program, 40 bytes": _program(assemble('(module (memory (export "memory") 1) (func (export "_start")))')),
        "program in C, empty main": _program(c_program("empty")),
        "program in C, copies the frame": _program(c_program("habits"), "copy", "{frame}"),
        "program in Rust, reads the frame": _program(rust_program("report"), "{frame}"),
        "program in Go, reads the frame": _program(go_program("report"), "{frame}"),
        "bindgen in C, empty result": spec(c_library("bindgen", libc=False), models=0, abi="bindgen", limits=limits),
    }


class FailedError(Exception):
    """The handler cannot do it at all."""


async def _round(running: Bench, frames: int) -> float:
    """Median microseconds from the submission of a frame to its end; FailedError."""
    times = []
    for _ in range(frames):
        started = perf_counter_ns()
        finished = await running.handle(PAYLOAD, "jpeg", 640, 480)
        times.append(perf_counter_ns() - started)
        running.finished.clear()
        running.submitted.clear()
        running.ring.free(finished.job.frame)
        if finished.outcome != "ok":
            raise FailedError(f"{finished.outcome}: {finished.message}")
    return statistics.median(times) / 1000


async def measure(rounds: int, frames: int) -> tuple[dict[str, list[float]], dict[str, str]]:
    """(medians of the rounds, why others failed), by what is shown."""
    figures: dict[str, list[float]] = {name: [] for name in candidates()}
    failed: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        handlers = {name: await stack.enter_async_context(bench(each)) for name, each in candidates().items()}
        for number in range(-1, rounds):  # the first is for caches and clocks to be warm
            for name in handlers.keys() - failed.keys():
                try:
                    taken = await _round(handlers[name], frames)
                except FailedError as error:
                    failed[name] = str(error)
                    figures.pop(name)
                else:
                    figures[name] += [taken] if number >= 0 else []
    return figures, failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=20)
    arguments = parser.parse_args()
    figures, failed = asyncio.run(measure(arguments.rounds, arguments.frames))
    print(f"| handler | us per frame of {len(PAYLOAD) // 1000} KB | times the native one |")
    print("|---|---|---|")
    for name, times in figures.items():
        ratios = [time / native for time, native in zip(times, figures[NATIVE], strict=True)]
        print(f"| {name} | {statistics.median(times):.0f} | {statistics.median(ratios):.1f} |")
    for name, reason in failed.items():
        print(f"| {name} | {reason} | |")


if __name__ == "__main__":
    main()
