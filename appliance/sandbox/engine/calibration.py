"""Gas from milliseconds: how many instructions a guest may run, where its manifest gives only a deadline.

For wasm3, admission charges so that an empty loop burns gas fastest (:mod:`appliance.sandbox.admission.metering`).
How fast that is on this machine is measured once, in the zygote. There are guests that burn it faster all the same:
those that run little of a large loop in each round, as interpreters and Go do, are charged for all of it. So each
frame tells how fast this guest burns gas, and an estimate that was too low is corrected by it.
"""

import contextlib
import os
from collections.abc import Iterator
from functools import cache
from time import perf_counter

from appliance.sandbox.admission.layout import read
from appliance.sandbox.admission.rewrite import instrumented
from appliance.sandbox.admission.verdict import Admitted
from appliance.sandbox.engine.engine import Function, GuestFailedError, Instance, open_engine

FUEL_PER_MS = 1_000_000_000
"""Of wasmtime: more than any machine burns. It makes several instructions of a module one of the machine, or none
(seen: 330 a nanosecond), and charges memory.fill and memory.copy by the byte (120 a nanosecond). So a guest that has only a
deadline is stopped by the clock."""
SHARE = 0.9
"""Of what an empty loop burns. All other code burns a fifth less at least, so it does not get to feel this, and an
endless loop is stopped by gas before it is by the clock."""
RUN_SECONDS = 0.001
RUNS = 5
FIRST_GAS = 1_000_000
LEAST_SECONDS = 0.001
"""A frame that took less says nothing of a guest's speed."""
ROOM = 1.25
"""For a guest that turned out to burn gas faster: so much more than it did."""
_STDERR = 2

_LOOP = bytes.fromhex("0061736d 01000000 01040160 0000 03020100 07080104 6c6f6f70 0000 0a090107 0003400c 000b0b")
"""``(module (func (export "loop") (loop (br 0))))``."""


@cache
def gas_per_ms(engine: str) -> float:
    """About what an endless loop burns: measured at the first call, in some 10 ms, and the same ever after."""
    return FUEL_PER_MS if engine == "wasmtime" else _measured()


def _measured() -> float:
    code, _ = instrumented(read(_LOOP), 0, restorable=False)
    instance = open_engine("wasm3").load(Admitted("", code, [], {"loop": "v()"}, [], 0), 0)
    instance.link(())
    loop = instance.find("loop", "v()")
    assert loop is not None
    with _nothing_printed():
        gas = FIRST_GAS
        while (best := _seconds_to_burn(gas, instance, loop)) < RUN_SECONDS:
            gas *= 2
        best = min(best, *(_seconds_to_burn(gas, instance, loop) for _ in range(RUNS)))
    return gas / best / 1000 * SHARE


def _seconds_to_burn(gas: int, instance: Instance, loop: Function) -> float:
    instance.allow(gas)
    started = perf_counter()
    with contextlib.suppress(GuestFailedError):
        loop()
    return perf_counter() - started


@contextlib.contextmanager
def _nothing_printed() -> Iterator[None]:
    """wasm3 prints a backtrace whenever it stops a guest."""
    stderr, null = os.dup(_STDERR), os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.dup2(null, _STDERR)
        yield
    finally:
        os.dup2(stderr, _STDERR)
        os.close(stderr)
        os.close(null)


class Allowance:
    """How much gas a guest gets for each frame: ``limit``, or what ``deadline_ms`` has room for."""

    def __init__(self, limit: int | None, deadline_ms: int, per_ms: float) -> None:
        self._limit = limit
        self._deadline_ms = deadline_ms
        self._per_ms = per_ms

    @property
    def gas(self) -> int:
        return self._limit or round(self._deadline_ms * self._per_ms)

    def learn(self, gas: int, seconds: float) -> None:
        """A frame has burnt so much in so much time of the CPU, whatever became of it."""
        if seconds >= LEAST_SECONDS:
            self._per_ms = max(self._per_ms, gas / seconds / 1000 * ROOM)

    def explain(self) -> str:
        """What to tell of a guest that has used it up; before :meth:`learn`."""
        if self._limit:
            return f"it ran more than {self._limit:,} instructions about one frame: limits.gas in its manifest"
        return (
            f"it ran more than {self.gas:,} instructions about one frame, as many as an endless loop does here in its "
            f"limits.deadline_ms of {self._deadline_ms}; limits.gas in its manifest allows more"
        )
