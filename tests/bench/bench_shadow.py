"""What a shadow costs the handler beside it: the same frames without and with one, in turns.

``PYTHONPATH=.:tests:tests/sandbox python tests/bench/bench_shadow.py [--frames N]``
"""

import argparse
import asyncio
import statistics
import tempfile
from pathlib import Path
from time import perf_counter_ns

from sandbox_bench import TAG, guest, spec
from serving_bench import Stage, stage

from appliance.manifest import Limits

FRAME_BYTES = 50_000
ROUNDS = 7
READS = guest(
    f"""(drop (call $frame_read (i32.const 0) (i32.const 0) (i32.const {FRAME_BYTES})))
    (call $emit (i32.const {TAG}) (i32.const 6) (i32.const 0) (i32.const 64))"""
)


async def frame_us(place: Stage, frames: int) -> float:
    """Microseconds from a frame's arrival until its source has its credit back, median; one frame at a time."""
    times = []
    for _ in range(frames):
        done = asyncio.get_running_loop().create_future()
        started = perf_counter_ns()
        place.send(bytes(FRAME_BYTES), on_done=lambda done=done: done.set_result(None))  # type: ignore[misc]
        await done
        times.append(perf_counter_ns() - started)
    return statistics.median(times) / 1000


async def measure(frames: int) -> None:
    handler = spec(READS, models=0, limits=Limits(emits_per_second=100_000, emit_kb_per_second=1_000_000))
    with tempfile.TemporaryDirectory() as directory:
        async with stage(Path(directory)) as place:
            await place.serving.start(handler)
            await place.running()
            await frame_us(place, frames)
            print("round   alone us   with a shadow us   ratio")
            ratios = []
            for number in range(1, ROUNDS + 1):
                alone = await frame_us(place, frames)
                await place.serving.shadow(handler)
                await place.running(shadow=True)
                beside = await frame_us(place, frames)
                await place.serving.unshadow("guest")
                ratios.append(beside / alone)
                print(f"{number:<6}{alone:>11.0f}{beside:>19.0f}{ratios[-1]:>8.2f}")
            assert place.serving.live["guest"].failed == {}
            print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1000)
    asyncio.run(measure(parser.parse_args().frames))
