"""What only wasm3 has."""

import contextlib
import os
from collections.abc import Iterator

import pytest
from sandbox_bench import admit, assemble

from appliance.sandbox.engine import GuestFailedError, Instance, wasm3_engine
from appliance.sandbox.messages import MAX_BACKTRACE

LIMIT = 1 << 20
TRAPS = """(module (func $inner unreachable) (func $middle (call $inner))
  (func $outer (export "handle") (result i32) (call $middle) i32.const 0)
  (func $deep (param i32) (result i32) (i32.add (i32.const 1) (call $deep (local.get 0))))
  (func (export "deep") (result i32) (call $deep (i32.const 1))))"""


def loaded(text: str, *, restorable: bool = False) -> Instance:
    instance = wasm3_engine.load(admit(assemble(text), restorable=restorable), LIMIT)
    instance.link(())
    instance.allow(10_000_000)
    return instance


@contextlib.contextmanager
def as_in_a_worker() -> Iterator[None]:
    """Standard error is the engine's."""
    kept = os.dup(2)
    try:
        wasm3_engine.prepare(LIMIT)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        for printed in wasm3_engine._printed:
            printed._ours.close()
        wasm3_engine._printed.clear()


def backtrace(instance: Instance, name: str) -> tuple[str, ...]:
    """Names of the functions."""
    function = instance.find(name)
    assert function is not None
    with pytest.raises(GuestFailedError) as failure:
        function()
    return tuple(line.split(" ", 2)[2] for line in failure.value.backtrace)


def test_backtraces_are_caught_one_by_one_and_are_short() -> None:
    with as_in_a_worker():
        instance = loaded(TRAPS)
        for _ in range(20):  # more than the socket holds, were it not emptied
            assert backtrace(instance, "handle") == ("inner", "middle", "handle")
            deep = backtrace(instance, "deep")
            assert len(deep) == MAX_BACKTRACE
            assert set(deep) == {"deep"}


def test_a_module_that_is_not_restorable_is_not_reset() -> None:
    instance = loaded('(module (memory 1) (func (export "handle") (result i32) i32.const 0))')
    with pytest.raises(RuntimeError, match="not admitted as restorable"):
        instance.reset()


def test_memory_out_of_the_virtual_size_is_cleared_by_a_reset_too() -> None:
    """wasm3 checks accesses against the memory that is there: a guest could hide something for the next frame."""
    instance = loaded(
        """(module (memory 1 4) (func (export "grow") (result i32) (memory.grow (i32.const 3)))
        (func (export "hide") (result i32) (i32.store (i32.const 200000) (i32.const 7)) i32.const 0)
        (func (export "seek") (result i32) (i32.load (i32.const 200000))))""",
        restorable=True,
    )

    def call(name: str) -> int:
        function = instance.find(name)
        assert function is not None
        result: int = function()
        return result

    call("grow")
    call("hide")
    instance.reset()
    assert call("seek") == 0
    call("hide")
    instance.reset()
    assert len(instance.memory()) == 1 << 16
    assert call("seek") == 0


def test_gas_of_a_guest_that_ran_out_is_what_it_was_allowed() -> None:
    """The module has overdrawn its account then, and wasm3 reads globals of 32 bits unsigned."""
    instance = loaded('(module (func (export "handle") (result i32) (loop $l br $l) i32.const 0))')
    for allowed in (10_001, 25_000, 1_000_000):
        instance.allow(allowed)
        backtrace(instance, "handle")
        assert allowed - 10_000 <= instance.gas_used() <= allowed


def test_resets_leak_nothing() -> None:
    instance = loaded(
        """(module (memory 1 4) (global $g (mut i64) (i64.const 0)) (func $s (global.set $g (i64.const 4))) (start $s)
        (func (export "handle") (result i32) (i32.store (i32.const 0) (i32.const 5)) i32.const 0))""",
        restorable=True,
    )

    def frames(count: int) -> int:
        for _ in range(count):
            instance.allow(100_000)
            handle = instance.find("handle")
            assert handle is not None
            handle()
            instance.memory()[4] = 6
            instance.reset()
        with open("/proc/self/statm") as statm:  # noqa: PTH123 - the whole line
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = frames(1000)
    assert frames(20_000) - before < 20_000 * 16  # a view of the memory alone would be 81 bytes
