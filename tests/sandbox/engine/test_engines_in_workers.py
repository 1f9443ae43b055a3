"""Both engines where they really run: in a worker that is locked down, with a zipper that watches the clock."""

import os
import signal

import pytest
from sandbox_bench import NOTHING, TAG, bench, guest, spec, until

from appliance.manifest import Limits
from appliance.sandbox.messages import Emit
from appliance.sandbox.worker import MAX_TRAPS

pytestmark = pytest.mark.parametrize("engine", ["wasm3", "wasmtime"])

SHORT = Limits(deadline_ms=200, memory_mb=1)
STEPS = guest(
    f"""(i32.store8 (i32.const 0) (i32.const 0))
    (drop (call $frame_read (i32.const 0) (i32.const 0) (i32.const 1)))
    (local.set $i (i32.load8_u (i32.const 0)))
    (if (i32.eq (local.get $i) (i32.const {ord("t")})) (then unreachable))
    (if (i32.eq (local.get $i) (i32.const {ord("l")})) (then (loop $l br $l)))
    (if (i32.eq (local.get $i) (i32.const {ord("f")})) (then
      (loop $l (memory.fill (i32.const 64) (i32.const 1) (i32.const 60000)) br $l)))
    (if (i32.eq (local.get $i) (i32.const {ord("h")})) (then (loop $l (drop (call $now_ns)) br $l)))
    (if (i32.eq (local.get $i) (i32.const {ord("d")})) (then (return (call $deep (i32.const 0)))))
    (if (i32.eq (local.get $i) (i32.const {ord("g")})) (then (return (memory.grow (i32.const 16)))))
    (i32.store (i32.const 4) (i32.add (i32.load (i32.const 4)) (i32.const 1)))
    (call $emit (i32.const {TAG}) (i32.const 6) (i32.const 4) (i32.const 4))""",
    extra="(func $deep (param i32) (result i32) (i32.add (i32.const 1) (call $deep (local.get 0))))",
)
"""Counts frames in memory; what else it does, a letter says."""


def count(number: int) -> tuple[Emit, ...]:
    return (Emit(TAG, "bytes", number.to_bytes(4, "little")),)


async def test_frames_are_handled_one_after_another_by_one_instance(engine: str) -> None:
    async with bench(spec(STEPS, engine=engine)) as handler:
        for number in range(1, 4):
            finished = await handler.handle()
            assert (finished.outcome, finished.emits) == ("ok", count(number))
        assert all(finished.gas > 0 for finished in handler.finished)
        lockdown = handler.host.status.lockdown
    assert lockdown is not None
    assert "seccomp" in lockdown.in_force or "seccomp" in lockdown.missing


@pytest.mark.parametrize(
    ("step", "outcome", "message"),
    [
        (b"t", "trap", "unreachable executed"),
        (b"d", "trap", "stack overflow"),
        (b"l", "gas", "it ran more than 5,000,000 instructions about one frame: limits.gas in its manifest"),
        (b"h", "budget", "host"),
        (b"g", "error", "handle returned -1"),
    ],
)
async def test_a_guest_that_is_stopped_goes_on_with_the_next_frame(
    step: bytes, outcome: str, message: str, engine: str
) -> None:
    limits = Limits(deadline_ms=10_000, memory_mb=1, gas=5, host_calls=100)
    async with bench(spec(STEPS, engine=engine, limits=limits)) as handler:
        pid = await handler.running()
        failed = await handler.handle(step)
        assert failed.outcome == outcome
        assert message in failed.message
        assert (await handler.handle()).emits == count(1)
        assert handler.host.status.pid == pid


async def test_a_worker_is_replaced_after_so_many_traps(engine: str) -> None:
    async with bench(spec(STEPS, engine=engine)) as handler:
        pid = await handler.running()
        for _ in range(MAX_TRAPS):
            assert (await handler.handle(b"t")).outcome == "trap"
        assert (await handler.handle()).outcome == "ok"
        status = handler.host.status
    assert status.pid != pid
    assert (status.recycled, status.restarts) == (1, 0)


@pytest.mark.parametrize("step", [b"l", b"f"])
async def test_an_endless_loop_ends_with_the_deadline_and_the_next_frame_is_served(step: bytes, engine: str) -> None:
    """By gas or by the clock, whatever is there first; a loop of memory.fill by the clock."""
    async with bench(spec(STEPS, engine=engine, limits=SHORT)) as handler:
        await handler.running()
        bad, good = handler.submit(step), handler.submit()
        stopped = await handler.finish(bad)
        assert stopped.outcome in ({"gas", "deadline"} if step == b"l" else {"deadline"})
        assert (await handler.finish(good)).outcome == "ok"


async def test_a_start_function_that_never_returns(engine: str) -> None:
    module = guest("i32.const 0", extra="(func $s (loop $l br $l)) (start $s)")
    async with bench(spec(module, engine=engine, limits=SHORT)) as handler:
        await until(lambda: handler.host.status.last_failure is not None)
        failure = handler.host.status.last_failure
    assert failure is not None
    assert failure.kind in {"gas", "deadline"}


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGILL, signal.SIGFPE, signal.SIGBUS])
async def test_a_real_fault_kills_the_worker(number: signal.Signals, engine: str) -> None:
    """No engine's handler of signals catches it."""
    async with bench(spec(NOTHING, engine=engine)) as handler:
        pid = await handler.running()
        assert (await handler.handle()).outcome == "ok"
        os.kill(pid, number)
        await until(lambda: handler.host.status.last_failure is not None)
        failure = handler.host.status.last_failure
        assert failure is not None
        assert failure.message == f"the worker was killed by {number.name}"
        assert (await handler.handle()).outcome == "ok"


async def test_memory_up_to_the_largest_limit(engine: str) -> None:
    """All of it is there within the worker's address space."""
    module = guest(
        """(drop (memory.grow (i32.const 4000))) (i32.store (i32.const 262000000) (i32.const 1))
        (i32.add (memory.grow (i32.const 96)) (i32.const 1))""",
        memory="1",
    )
    async with bench(spec(module, engine=engine, limits=Limits(deadline_ms=20_000, memory_mb=256))) as handler:
        finished = await handler.handle()
    assert finished.outcome == "ok", finished.message
