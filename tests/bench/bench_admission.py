"""Figures of admission: ``python tests/bench/bench_admission.py``.

What metering costs on wasm3, as the ratio of the rewritten module's time to that of the module as it came, both run in
turns; and what it takes to judge a module. Times are of one machine, ratios say something about others.
"""

import asyncio
import statistics
import struct
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import wasm3
import wasmtime

from appliance.sandbox.admission.admit import Admission
from appliance.sandbox.admission.judge import engine_for, judge
from appliance.sandbox.admission.verdict import Admitted, EngineName, Order

HANDLERS = Path(__file__).resolve().parents[2] / "handlers"
MEMORY_BYTES = 16 << 20
PLENTY = 1e12
"""Of gas."""
ROUNDS = 15
ENGINES: tuple[EngineName, ...] = ("wasm3", "wasmtime")
CLASSES = 30
"""Of the model of `parts`."""
FRAME, TENSOR = struct.Struct("<QQIIIIII"), struct.Struct("<II8IIIfi")
FLOAT32, NOT_THERE = 1, -2

PIXELS = """(module (memory 20) (func (export "handle") (result i32) (local $i i32) (local $sum i32)
  (loop $next
    (local.set $sum (i32.add (local.get $sum) (i32.load8_u (local.get $i))))
    (i32.store8 (local.get $i) (i32.shr_u (i32.add (i32.load8_u (local.get $i)) (local.get $sum)) (i32.const 1)))
    (br_if $next (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 921600))))
  (i32.const 0)))"""
CALLS = """(module (func $fib (param i32) (result i32)
    (if (result i32) (i32.lt_u (local.get 0) (i32.const 2)) (then (local.get 0))
      (else (i32.add (call $fib (i32.sub (local.get 0) (i32.const 1)))
                     (call $fib (i32.sub (local.get 0) (i32.const 2)))))))
  (func (export "handle") (result i32) (drop (call $fib (i32.const 22))) (i32.const 0)))"""
EMPTY = """(module (func (export "handle") (result i32) (local $i i32)
  (loop (br_if 0 (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 1000000))))
  (i32.const 0)))"""


def judged(module: bytes, engine: EngineName = "wasm3", *, restorable: bool = False) -> Admitted:
    order = Order(module, engine, MEMORY_BYTES, restorable)
    verdict = judge(order, engine_for(order))
    assert isinstance(verdict, Admitted), verdict
    return verdict


class Guest:
    """An instance whose host has pictures that move and models that find nothing."""

    def __init__(self, code: bytes, imports: list[tuple[str, str, str]]) -> None:
        environment = wasm3.Environment()
        self._runtime = environment.new_runtime(64 << 10)
        self._module = environment.parse_module(code)
        self._module.gasLimit = PLENTY
        self._runtime.load(self._module)
        self._frames = 0
        self.answer = 0
        for module, name, signature in imports:
            self._module.link_function(module, name, signature, getattr(self, name, self._zero))
        for name in ("init", "handle"):
            self.call(name)

    def call(self, name: str = "handle") -> None:
        try:
            function = self._runtime.find_function(name)
        except RuntimeError:
            return  # it has none
        self._frames += 1
        self.answer = function()

    def frame_info(self, out: int) -> int:
        self._write(out, FRAME.pack(self._frames, self._frames, 1, 1, 640, 480, 50_000, 0))
        return 0

    def frame_pixels(self, *arguments: int) -> int:
        """Half of the picture changes with every frame."""
        out, capacity = arguments[-2:]
        self._write(out, bytes((self._frames * 90 & 0xFF, 7)) * (capacity // 2))
        return capacity

    def model_output(self, _model: int, _index: int, out: int) -> int:
        """float32 [1, CLASSES]"""
        self._write(out, TENSOR.pack(FLOAT32, 2, 1, CLASSES, *(0,) * 6, 4 * CLASSES, CLASSES, 0.0, 0))
        return 0

    def setting(self, *_: int) -> int:
        return NOT_THERE

    def model_label(self, *_: int) -> int:
        return NOT_THERE

    def _write(self, out: int, data: bytes) -> None:
        self._runtime.get_memory(0)[out : out + len(data)] = data

    def output_f32(self, *arguments: int) -> int:
        """All of what is asked for, and zero."""
        return arguments[-1]

    def _zero(self, *_: int) -> int:
        return 0


def ratios(name: str, module: bytes) -> None:
    """Print the times of a call and the ratios of the rewritten forms."""
    plain = judged(module)
    guests = [
        Guest(module, plain.imports),
        *(Guest(judged(module, restorable=r).code, plain.imports) for r in (False, True)),
    ]
    assert all(guest.answer == 0 for guest in guests), guests[0].answer
    times: list[list[float]] = [[], [], []]
    repeats = max(1, round(0.02 / max(seconds(guests[0].call), 1e-6)))
    for _ in range(ROUNDS):
        for guest, found in zip(guests, times, strict=True):
            found.append(seconds(lambda guest=guest: [guest.call() for _ in range(repeats)]) / repeats)
    base, metered, restorable = (statistics.median(found) for found in times)
    print(f"{name:<26} {base * 1e3:9.3f} ms   metered {metered / base:5.2f}   restorable {restorable / base:5.2f}")


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_process(name: str, module: bytes) -> None:
    for engine in ENGINES:
        spent = statistics.median(seconds(partial(judged, module, engine)) for _ in range(9))
        size = len(judged(module, engine).code)
        print(f"{name:<26} {spent * 1e3:9.3f} ms   {engine}, {len(module)} bytes -> {size}")


async def by_a_child(name: str, module: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        admission = Admission(Path(directory))
        for what in ("judged by a child", "remembered"):
            start = time.perf_counter()
            await admission.admit(Order(module, "wasm3", MEMORY_BYTES))
            print(f"{name:<26} {(time.perf_counter() - start) * 1e3:9.3f} ms   {what}")


def main() -> None:
    handlers = {path.parent.name: path.read_bytes() for path in sorted(HANDLERS.glob("*/handler.wasm"))}
    made = {"pixel loop, 921,600 bytes": PIXELS, "calls (fib 22)": CALLS, "empty loop, 1,000,000": EMPTY}
    print("One call, and the ratio of the rewritten module's time to it")
    for name in ("motion", "parts"):
        ratios(name, handlers[name])
    for name, text in made.items():
        ratios(name, bytes(wasmtime.wat2wasm(text)))
    print("\nJudging")
    for name, module in handlers.items():
        in_process(name, module)
    asyncio.run(by_a_child("count", handlers["count"]))


if __name__ == "__main__":
    main()
