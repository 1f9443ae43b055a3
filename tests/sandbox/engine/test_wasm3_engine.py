"""The engine in this process, with valid modules only: what can hang or crash it is tried in real workers."""

import pytest
from sandbox_bench import assemble, guest

from appliance.sandbox.engine import GuestFailedError, HostFunction, Instance, open_engine
from appliance.sandbox.engine.wasm3_engine import _guarded

LIMIT = 1 << 20


def loaded(text: str, *functions: HostFunction, memory_bytes: int = LIMIT) -> Instance:
    instance = open_engine("wasm3").load(assemble(text), memory_bytes)
    instance.link(functions)
    return instance


def call(instance: Instance, name: str = "handle") -> int:
    function = instance.find(name)
    assert function is not None
    return function()


def test_a_function_is_called() -> None:
    instance = loaded('(module (func (export "handle") (result i32) i32.const -7))')
    assert call(instance) == -7
    assert instance.find("init") is None


def test_find_before_link_is_a_defect_not_a_crash() -> None:
    instance = open_engine("wasm3").load(assemble('(module (func (export "handle") (result i32) i32.const 0))'), LIMIT)
    with pytest.raises(RuntimeError, match="link before find"):
        instance.find("handle")


def test_the_name_section_does_not_stand_in_for_exports() -> None:
    """wasm3 looks a function up by the name section first: that must not lead to another than the exported one."""
    instance = loaded(
        '(module (func $handle (result i32) i32.const 1) (func (export "handle") (result i32) i32.const 2))'
    )
    assert call(instance) == 2


def test_a_function_that_is_only_named_is_not_found() -> None:
    assert loaded("(module (func $handle (result i32) i32.const 1))").find("handle") is None


def test_what_wasm3_cannot_load() -> None:
    simd = '(module (func (export "handle") (result i32) (i32x4.extract_lane 0 (v128.const i32x4 1 2 3 4))))'
    with pytest.raises(GuestFailedError) as failure:
        call(loaded(simd))
    assert failure.value.kind == "load"
    with pytest.raises(GuestFailedError, match="does not start like a WebAssembly module") as failure:
        open_engine("wasm3").load(b"MZ", LIMIT)
    assert failure.value.kind == "load"


def test_an_import_that_the_abi_does_not_have() -> None:
    with pytest.raises(GuestFailedError, match=r"it imports env\.launch, which its ABI does not have") as failure:
        loaded('(module (import "env" "launch" (func)))')
    assert failure.value.kind == "link"


def test_an_import_of_another_type() -> None:
    function = HostFunction("env", "f", "i(i)", lambda _: 0)
    with pytest.raises(GuestFailedError, match=r"env\.f with another type than i\(i\)") as failure:
        loaded('(module (import "env" "f" (func (param i64) (result i32))))', function)
    assert failure.value.kind == "link"


@pytest.mark.parametrize("kind", ["(param i32) (result i32)", "(result i64)", ""])
def test_an_export_of_another_type(kind: str) -> None:
    """wasm3 would read arguments that are not there."""
    instance = loaded(f'(module (func (export "handle") {kind} unreachable))')
    with pytest.raises(GuestFailedError, match=r"handle is not of type i\(\)"):
        instance.find("handle")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("unreachable", "unreachable executed"),
        ("(i32.div_s (i32.const 1) (i32.const 0))", "integer divide by zero"),
        ("(i32.load (i32.const 70000))", "out of bounds memory access"),
        ("(call_indirect (result i32) (i32.const 9))", "undefined element"),
    ],
)
def test_traps_are_named_and_the_instance_survives(body: str, message: str) -> None:
    text = (
        f'(module (memory 1) (table 1 funcref) (func (export "bad") (result i32) {body})'
        '(func (export "handle") (result i32) i32.const 5))'
    )
    instance = loaded(text)
    for _ in range(3):
        with pytest.raises(GuestFailedError, match=message) as failure:
            call(instance, "bad")
        assert failure.value.kind == "trap"
    assert call(instance) == 5


def test_the_start_function_runs_with_imports_linked_and_its_trap_is_told() -> None:
    seen: list[int] = []

    def see(value: int) -> int:
        seen.append(value)
        return 0

    function = HostFunction("env", "f", "i(i)", see)
    start = '(module (import "env" "f" (func $f (param i32) (result i32))) (func $s {}) (start $s)'
    handle = '(func (export "handle") (result i32) i32.const 0))'
    call(loaded(start.format("(drop (call $f (i32.const 42)))") + handle, function))
    assert seen == [42]
    with pytest.raises(GuestFailedError, match="unreachable"):
        loaded(start.format("unreachable") + handle, function).find("handle")


def test_a_host_functions_error_passes_through_the_guest() -> None:
    class OurError(Exception):
        pass

    def fail() -> int:
        raise OurError

    instance = loaded(
        '(module (import "env" "f" (func $f (result i32))) (func (export "handle") (result i32) (call $f)))',
        HostFunction("env", "f", "i()", fail),
    )
    for _ in range(2):
        with pytest.raises(OurError):
            call(instance)


def test_memory_is_seen_and_grows_to_its_limit_only() -> None:
    grow = '(module (memory (export "memory") 1) (func (export "handle") (result i32) (memory.grow (i32.const 1))))'
    instance = loaded(grow, memory_bytes=3 << 16)
    assert len(instance.memory()) == 1 << 16
    assert [call(instance) for _ in range(4)] == [1, 2, -1, -1]
    assert len(instance.memory()) == 3 << 16


def test_a_module_that_starts_too_large() -> None:
    with pytest.raises(GuestFailedError, match="over its limit") as failure:
        open_engine("wasm3").load(guest("i32.const 0", memory="17"), LIMIT)
    assert failure.value.kind == "memory"


def test_an_engine_without_memory_left_says_so() -> None:
    """In the words of wasm3, which no valid module has been seen to bring about."""

    def exhausted() -> None:
        raise RuntimeError("memory allocation failed")

    with pytest.raises(GuestFailedError) as failure:
        _guarded(exhausted)
    assert failure.value.kind == "memory"


def test_a_module_without_memory() -> None:
    assert len(loaded('(module (func (export "handle") (result i32) i32.const 0))').memory()) == 0
