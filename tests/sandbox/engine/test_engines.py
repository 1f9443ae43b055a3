"""One suite over all engines, in this process and with valid modules: what can crash it is tried in real workers."""

import re

import pytest
from sandbox_bench import admit, assemble

from appliance.sandbox.admission.verdict import EngineName
from appliance.sandbox.engine import GuestFailedError, HostFunction, Instance, open_engine

LIMIT = 1 << 20
PAGE = 1 << 16
GAS = 10_000_000

pytestmark = pytest.mark.parametrize("engine", ["wasm3", "wasmtime"])


def loaded(engine: EngineName, text: str, *functions: HostFunction, memory_bytes: int = LIMIT) -> Instance:
    """A restorable instance, linked, with gas. Functions are those that admission knows."""
    admitted = admit(assemble(text), engine, memory_bytes, restorable=True)
    instance = open_engine(engine).load(admitted, memory_bytes)
    instance.link(functions)
    instance.allow(GAS)
    return instance


def call(instance: Instance, name: str = "handle") -> int:
    function = instance.find(name)
    assert function is not None
    result: int = function()
    return result


def fault(instance: Instance, name: str = "handle") -> GuestFailedError:
    with pytest.raises(GuestFailedError) as failure:
        call(instance, name)
    return failure.value


def test_a_function_is_called(engine: EngineName) -> None:
    instance = loaded(engine, '(module (func (export "handle") (result i32) i32.const -7))')
    assert call(instance) == -7
    assert instance.find("init") is None


def test_find_before_link_is_a_defect_not_a_crash(engine: EngineName) -> None:
    admitted = admit(assemble('(module (func (export "handle") (result i32) i32.const 0))'), engine)
    instance = open_engine(engine).load(admitted, LIMIT)
    with pytest.raises(RuntimeError, match="link before find"):
        instance.find("handle")


def test_the_name_section_does_not_stand_in_for_exports(engine: EngineName) -> None:
    """wasm3 looks a function up by the name section first: that must not lead to another than the exported one."""
    instance = loaded(
        engine, '(module (func $handle (result i32) i32.const 1) (func (export "handle") (result i32) i32.const 2))'
    )
    assert call(instance) == 2


def test_a_function_that_is_only_named_is_not_found(engine: EngineName) -> None:
    assert loaded(engine, "(module (func $handle (result i32) i32.const 1))").find("handle") is None


def test_an_import_that_the_host_does_not_have(engine: EngineName) -> None:
    with pytest.raises(GuestFailedError, match=r"it imports appliance\.now_ns, which its ABI does not have") as failure:
        loaded(engine, '(module (import "appliance" "now_ns" (func (result i64))))')
    assert failure.value.kind == "link"


def test_an_import_of_another_type(engine: EngineName) -> None:
    function = HostFunction("appliance", "now_ns", "i()", lambda: 0)
    with pytest.raises(GuestFailedError, match=r"appliance\.now_ns as I\(\); it is i\(\)") as failure:
        loaded(engine, '(module (import "appliance" "now_ns" (func (result i64))))', function)
    assert failure.value.kind == "link"


@pytest.mark.parametrize("kind", ["(param i32) (result i32)", "(result i64)", ""])
def test_an_export_of_another_type(kind: str, engine: EngineName) -> None:
    """wasm3 would read arguments that are not there."""
    instance = loaded(engine, f'(module (func (export "handle") {kind} unreachable))')
    with pytest.raises(GuestFailedError, match=r"handle is .*; it must be i\(\)"):
        instance.find("handle")


def test_integers_come_and_go_signed(engine: EngineName) -> None:
    """What does not fit is cut, as C does it: hosts return unsigned numbers, too."""
    seen: list[int] = []

    def i32(value: int) -> int:
        seen.append(value)
        return 0xFFFF_FFFE

    def i64(a: int, b: int) -> int:
        seen.extend((a, b))
        return 0xFFFF_FFFF_FFFF_FFFD

    text = """(module
      (import "appliance" "frame_info" (func $i32 (param i32) (result i32)))
      (import "wasmedge_tensorflowlite" "wasmedge_tensorflowlite_create_session"
        (func $i64 (param i32 i32) (result i64)))
      (func (export "handle") (result i32) (call $i32 (i32.const -1)))
      (func (export "long") (param i64) (result i64)
        (i64.add (local.get 0) (call $i64 (i32.const 0x80000000) (i32.const 1)))))"""
    module = "wasmedge_tensorflowlite"
    instance = loaded(
        engine,
        text,
        HostFunction("appliance", "frame_info", "i(i)", i32),
        HostFunction(module, f"{module}_create_session", "I(ii)", i64),
    )
    assert call(instance) == -2
    long = instance.find("long", "I(I)")
    assert long is not None
    assert long(-(2**62)) == -(2**62) - 3
    assert seen == [-1, -(2**31), 1]


TRAPS = [
    ("unreachable", "unreachable executed"),
    ("(i32.div_s (i32.const 1) (i32.const 0))", "integer divide by zero"),
    ("(i32.rem_u (i32.const 1) (i32.const 0))", "integer divide by zero"),
    ("(i32.div_s (i32.const 0x80000000) (i32.const -1))", "integer overflow"),
    ("(i32.trunc_f32_s (f32.const 1e30))", "integer overflow"),
    ("(i32.trunc_f32_s (f32.const nan))", "invalid conversion to integer"),
    ("(i32.load (i32.const 70000))", "out of bounds memory access"),
    ("(memory.fill (i32.const 1) (i32.const 0) (i32.const 65536)) i32.const 0", "out of bounds memory access"),
    ("(call_indirect (result i32) (i32.const 9))", "undefined element"),
    ("(call_indirect (result i32) (i32.const 0))", "null table element"),
    ("(call_indirect (result i32) (i32.const 1))", "indirect call type mismatch"),
    ("(call $deep (i32.const 0))", "stack overflow"),
]


@pytest.mark.parametrize(("body", "message"), TRAPS)
def test_traps_have_the_same_names_and_the_instance_survives(body: str, message: str, engine: EngineName) -> None:
    text = f"""(module (memory 1) (table 2 2 funcref) (elem (i32.const 1) $long)
        (func $long (result i64) i64.const 0)
        (func $deep (param i32) (result i32) (i32.add (i32.const 1) (call $deep (local.get 0))))
        (func (export "bad") (result i32) {body})
        (func (export "handle") (result i32) i32.const 5))"""
    instance = loaded(engine, text)
    for _ in range(3):
        instance.allow(GAS)
        failure = fault(instance, "bad")
        assert (failure.kind, str(failure).partition(" (")[0]) == ("trap", message)
    assert call(instance) == 5


START = """(module (import "appliance" "frame_info" (func $f (param i32) (result i32))) (memory 1)
  (func $s {}) (start $s) (func (export "handle") (result i32) (i32.load (i32.const 0))))"""


def seen_by(seen: list[int]) -> HostFunction:
    def see(value: int) -> int:
        seen.append(value)
        return 0

    return HostFunction("appliance", "frame_info", "i(i)", see)


def test_the_start_function_runs_at_the_first_find_and_its_trap_is_told(engine: EngineName) -> None:
    seen: list[int] = []
    instance = loaded(engine, START.format("(drop (call $f (i32.const 42)))"), seen_by(seen))
    assert len(instance.memory()) == PAGE
    assert seen == []
    call(instance)
    call(instance)
    assert seen == [42]
    assert str(fault(loaded(engine, START.format("unreachable"), seen_by(seen)))) == "unreachable executed"


def test_the_start_function_has_memory_while_it_runs_and_gas_like_any_other(engine: EngineName) -> None:
    views: list[int] = []

    def look(_: int) -> int:
        instance.memory()[0] = 9
        views.append(len(instance.memory()))
        return 0

    function = HostFunction("appliance", "frame_info", "i(i)", look)
    instance = loaded(engine, START.format("(drop (call $f (i32.const 42)))"), function)
    assert call(instance) == 9
    assert views == [PAGE]
    assert fault(loaded(engine, START.format("(loop $l br $l)"), function)).kind == "gas"


def test_a_host_functions_error_passes_through_the_guest(engine: EngineName) -> None:
    """Whatever it is, even one that the engine raises itself."""
    errors: list[Exception] = [KeyError("ours"), RuntimeError("[trap] not the guest's"), GuestFailedError("budget", "")]

    def fail() -> int:
        raise errors[-1]

    text = '(module (import "appliance" "now_ns" (func $f (result i64))) (func (export "handle") (result i32) {}))'
    instance = loaded(
        engine, text.format("(drop (call $f)) i32.const 0"), HostFunction("appliance", "now_ns", "I()", fail)
    )
    while errors:
        with pytest.raises(type(errors[-1])) as raised:
            call(instance)
        assert raised.value is errors.pop()


GROW = '(module (memory (export "memory") 1 {}) (func (export "handle") (result i32) (memory.grow (i32.const 1))))'


@pytest.mark.parametrize("declared", ["", "3", "1000"])
def test_memory_is_seen_and_grows_to_its_limit_only(declared: str, engine: EngineName) -> None:
    instance = loaded(engine, GROW.format(declared), memory_bytes=3 * PAGE)
    assert len(instance.memory()) == PAGE
    assert [call(instance) for _ in range(4)] == [1, 2, -1, -1]
    assert len(instance.memory()) == 3 * PAGE


def test_memory_is_written_in_both_directions(engine: EngineName) -> None:
    instance = loaded(
        engine,
        """(module (memory 1) (data (i32.const 8) "data")
        (func (export "handle") (result i32) (i32.store (i32.const 4) (i32.const 7)) (i32.load (i32.const 0))))""",
    )
    instance.memory()[:4] = (123).to_bytes(4, "little")
    assert call(instance) == 123
    assert bytes(instance.memory()[4:12]) == b"\7\0\0\0data"
    assert instance.memory().format == "B"


def test_a_module_without_memory(engine: EngineName) -> None:
    assert len(loaded(engine, '(module (func (export "handle") (result i32) i32.const 0))').memory()) == 0


# --- gas -----------------------------------------------------------------------------------------------------

LOOPS = """(module (func (export "handle") (result i32) (local $n i32)
  (loop $l (br_if $l (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 100000)))) i32.const 4)
  (func (export "forever") (result i32) (loop $l br $l) i32.const 0))"""
LEAST = 100_000 * 5
"""Instructions of ``handle``."""
BATCH = 10_000
"""wasm3 takes gas so much at a time, and stops a guest that has less left."""


def test_without_gas_nothing_runs(engine: EngineName) -> None:
    instance = open_engine(engine).load(admit(assemble(LOOPS), engine), LIMIT)
    instance.link(())
    assert fault(instance).kind == "gas"


def test_an_endless_loop_uses_its_gas_up_and_the_next_call_has_gas_again(engine: EngineName) -> None:
    instance = loaded(engine, LOOPS)
    for allowed in (1, 12_345, 200_000):
        instance.allow(allowed)
        failure = fault(instance, "forever")
        assert (failure.kind, str(failure)) == ("gas", "Out of gas")
        assert instance.gas_used() == allowed
    instance.allow(GAS)
    assert call(instance) == 4


def test_gas_is_counted_since_it_was_allowed(engine: EngineName) -> None:
    instance = loaded(engine, LOOPS)
    assert instance.gas_used() == 0
    call(instance)
    once = instance.gas_used()
    assert once > LEAST
    call(instance)
    assert instance.gas_used() == 2 * once
    instance.allow(once + BATCH)
    assert instance.gas_used() == 0
    assert call(instance) == 4
    instance.allow(once // 2)
    assert fault(instance).kind == "gas"


def test_gas_goes_on_over_a_reset(engine: EngineName) -> None:
    instance = loaded(engine, LOOPS)
    call(instance)
    once = instance.gas_used()
    instance.reset()
    assert instance.gas_used() == once
    call(instance)
    assert instance.gas_used() == 2 * once


# --- reset ---------------------------------------------------------------------------------------------------

STATEFUL = """(module (memory (export "memory") 2 8) (data (i32.const 70000) "\\05")
  (global $count (mut i32) (i32.const 10)) (global $long (mut i64) (i64.const -1))
  (global $float (mut f32) (f32.const 1.5)) (global $double (mut f64) (f64.const 2.5))
  (func (export "handle") (result i32)
    (global.set $count (i32.add (global.get $count) (i32.load8_u (i32.const 70000))))
    (global.set $long (i64.add (global.get $long) (i64.const 1)))
    (global.set $float (f32.mul (global.get $float) (f32.const 2)))
    (global.set $double (f64.mul (global.get $double) (f64.const 2)))
    (i32.store8 (i32.const 70000) (i32.const 50))
    (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 1)))
    (drop (memory.grow (i32.const 2)))
    (i32.store (i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const 4)) (i32.const 99))
    (i32.add (i32.mul (i32.const 1000) (i32.load (i32.const 0)))
      (i32.add (i32.wrap_i64 (global.get $long))
        (i32.add (i32.trunc_f32_s (global.get $float)) (i32.add (i32.trunc_f64_s (global.get $double))
          (global.get $count))))))
  (func (export "size") (result i32) memory.size)
  (func (export "last") (result i32) (drop (memory.grow (i32.const 2))) (i32.load (i32.const 262140)))
  (func (export "bad") (result i32) (global.set $count (i32.const 77)) (i32.store (i32.const 0) (i32.const 7))
    unreachable))"""


def test_an_instance_that_is_reset_is_as_freshly_loaded(engine: EngineName) -> None:
    instance = loaded(engine, STATEFUL)
    fresh = bytes(instance.memory())
    first = call(instance)
    assert first == 1000 + 0 + 3 + 5 + 15
    assert call(instance) != first
    for _ in range(3):
        instance.reset()
        assert bytes(instance.memory()) == fresh
        assert call(instance, "size") == 2
        assert call(instance, "last") == 0  # what was written there is gone, although the memory is there
        instance.reset()
        assert call(instance) == first
        assert len(instance.memory()) == 4 * PAGE
        assert fault(instance, "bad").kind == "trap"


def test_a_reset_gives_back_the_limit_of_the_memory(engine: EngineName) -> None:
    instance = loaded(engine, GROW.format(""), memory_bytes=3 * PAGE)
    for _ in range(3):
        assert [call(instance) for _ in range(3)] == [1, 2, -1]
        instance.reset()


def test_the_start_function_runs_again_after_a_reset(engine: EngineName) -> None:
    seen: list[int] = []
    text = START.format("(drop (call $f (i32.load (i32.const 0)))) (i32.store (i32.const 0) (i32.const 6))")
    instance = loaded(engine, text, seen_by(seen))
    assert call(instance) == 6
    instance.reset()
    assert bytes(instance.memory()[:4]) == bytes(4)
    assert seen == [0]
    assert call(instance) == 6
    assert seen == [0, 0]


def test_a_reset_of_a_module_without_state(engine: EngineName) -> None:
    instance = loaded(engine, '(module (func (export "handle") (result i32) i32.const 3))')
    call(instance)
    instance.reset()
    assert call(instance) == 3


def test_damaged_code_is_not_loaded(engine: EngineName) -> None:
    admitted = admit(assemble(LOOPS), engine)
    with pytest.raises(GuestFailedError, match="cannot be loaded") as failure:
        open_engine(engine).load(type(admitted)(admitted.digest, b"MZ", [], {}, [], 0), LIMIT)
    assert failure.value.kind == "load"


def test_a_backtrace_names_functions(engine: EngineName) -> None:
    text = """(module (func $inner (param i32) unreachable) (func $middle (call $inner (i32.const 0)))
      (func $outer (export "handle") (result i32) (call $middle) i32.const 0))"""
    backtrace = fault(loaded(engine, text)).backtrace
    if engine == "wasm3":  # it prints them, and only a worker's standard error is ours to catch
        assert backtrace == ()
    else:
        assert [re.sub(r"0x[0-9a-f]{6,}", "0x", line) for line in backtrace] == [
            "0: 0x inner",
            "1: 0x middle",
            "2: 0x outer",
        ]
