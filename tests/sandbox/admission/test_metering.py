"""Gas is charged for what runs, and nothing else about a module changes. All of it on wasm3."""

import struct
from pathlib import Path

import pytest
from admission_bench import MODULES, Run, admitted, run, run_plain
from sandbox_bench import guest

from appliance.sandbox.admission import metering
from appliance.sandbox.admission.binary import PAGE_BYTES
from appliance.sandbox.admission.metering import BATCH, CHARGE_COST
from appliance.sandbox.admission.verdict import GAS_NAME, START_NAME

OUT_OF_GAS = "[trap] Out of gas"


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host is asked for each charge."""
    monkeypatch.setattr(metering, "BATCH", 0)


def function(body: str, kind: str = "(result i32)", extra: str = "") -> str:
    return f'(module (memory 1 4) {extra} (func (export "f") {kind} {body}))'


# --- what is charged ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(
    ("body", "gas"),
    [
        ("i32.const 1", CHARGE_COST + 2),
        ("(i32.add (i32.const 1) (i32.const 2))", CHARGE_COST + 4),
        ("(block (br 0)) (i32.const 1)", CHARGE_COST + 5),
        ("(loop (nop)) (i32.const 1)", (CHARGE_COST + 3) + (CHARGE_COST + 2)),
        ("(loop (loop (nop) (nop))) (i32.const 1)", (CHARGE_COST + 3) + (CHARGE_COST + 2) + (CHARGE_COST + 3)),
        ("(if (i32.const 0) (then (loop (br 0)))) (i32.const 1)", CHARGE_COST + 6),
    ],
)
def test_a_function_costs_its_instructions_and_each_loop_its_own(body: str, gas: int) -> None:
    tried = run(function(body))
    assert isinstance(tried.call("f"), int)
    assert tried.used == gas


@pytest.mark.usefixtures("exact")
def test_a_loop_costs_each_time_around() -> None:
    body = (
        "(loop (br_if 0 (i32.lt_u (local.tee 0 (i32.add (local.get 0) (i32.const 1))) (i32.const 10)))) (local.get 0)"
    )
    tried = run(function(body, "(param i32) (result i32)"))
    assert tried.call("f", 0) == 10
    assert tried.used == (CHARGE_COST + 3) + 10 * (CHARGE_COST + 8)


@pytest.mark.usefixtures("exact")
def test_a_called_function_costs_too() -> None:
    tried = run(
        function(
            "(call $g) (call_indirect (result i32) (i32.const 0)) i32.add",
            extra="(func $g (result i32) (i32.const 20)) (table 1 funcref) (elem (i32.const 0) $g)",
        )
    )
    assert tried.call("f") == 40
    assert tried.used == (CHARGE_COST + 5) + 2 * (CHARGE_COST + 2)


@pytest.mark.usefixtures("exact")
def test_a_large_charge_is_one_number() -> None:
    tried = run(function("(nop)" * 100_000 + "(i32.const 1)"))
    assert tried.call("f") == 1
    assert tried.used == CHARGE_COST + 100_002


@pytest.mark.parametrize("times", [1, 500, 20_000])
def test_gas_is_taken_from_the_host_in_batches(times: int) -> None:
    body = "(loop (br_if 0 (local.tee 0 (i32.sub (local.get 0) (i32.const 1))))) (i32.const 1)"
    tried = run(function(body, "(param i32) (result i32)"))
    for _ in range(2):
        assert tried.call("f", times) == 1
    cost = 2 * ((CHARGE_COST + 3) + times * (CHARGE_COST + 6))
    assert cost <= tried.used < cost + BATCH


# --- what it stops ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        "(loop (br 0))",
        "(loop (br_if 0 (i32.const 1)))",
        "(loop (loop (br 1)))",
        "(loop (block (br_table 1 0 (i32.const 0))))",
        "(loop (call $nothing) (br 0))",
        "(loop (if (i32.const 1) (then (br 1)) (else (br 1))))",
        "(loop (block (loop (br_if 1 (i32.const 1)))) (br 0))",
    ],
)
def test_no_endless_loop_goes_on(body: str) -> None:
    tried = run(function(f"{body} (i32.const 1)", extra="(func $nothing)"), gas=10)
    assert tried.call("f") == OUT_OF_GAS


def test_endless_recursion_runs_out_of_gas_or_stack() -> None:
    tried = run('(module (func $f (export "f") (call $f)))', gas=1)
    assert tried.call("f") == OUT_OF_GAS


def test_an_endless_start_function_is_stopped() -> None:
    """It is an export of ours, which the engine calls; wasm3 would run it when a function is first looked up."""
    tried = run('(module (func $s (loop (br 0))) (start $s) (func (export "f") (result i32) (i32.const 1)))', gas=10)
    assert tried.call("f") == 1
    assert tried.call(START_NAME) == OUT_OF_GAS


def test_an_instance_can_be_used_after_it_ran_out() -> None:
    tried = run(function("(if (local.get 0) (then (loop (br 0)))) (i32.const 7)", "(param i32) (result i32)"), gas=10)
    assert tried.call("f", 1) == OUT_OF_GAS
    tried.module.gasLimit = 10
    assert tried.call("f", 0) == 7


# --- what stays the same ------------------------------------------------------------------------------------

VALUES = [
    ("(i32.const -2147483648)", "i32"),
    ("(i64.const -9223372036854775808)", "i64"),
    ("(f32.const 1.5)", "f32"),
    ("(f64.const -0x1.fffffffffffffp+1023)", "f64"),
    ("(i32.extend8_s (i32.const 200))", "i32"),
    ("(i64.extend32_s (i64.const 0xffffffff))", "i64"),
    ("(i32.trunc_sat_f64_s (f64.const 1e300))", "i32"),
    ("(i64.trunc_sat_f32_u (f32.const -1))", "i64"),
    ("(memory.fill (i32.const 8) (i32.const 7) (i32.const 4)) (i32.load (i32.const 8))", "i32"),
    ("(memory.copy (i32.const 8) (i32.const 0) (i32.const 4)) (i32.load (i32.const 8))", "i32"),
    ("(memory.grow (i32.const 2)) (i32.mul (i32.const 100) (memory.size)) (i32.add)", "i32"),
    ("(memory.grow (i32.const 4))", "i32"),
    ("(i32.const 3) (block (param i32) (result i32) (i32.const 4) (i32.mul))", "i32"),
    ("(block (result i32) (br_table 0 0 0 (i32.const 9) (i32.const 300)))", "i32"),
    ("(loop (result i32) (i32.const 5))", "i32"),
    ("(call $twice (call $twice (i32.const 5)))", "i32"),
    ("(call_indirect (param i32) (result i32) (i32.const 4) (i32.const 1))", "i32"),
    ("(call_indirect (param i32) (result i32) (i32.const 4) (i32.const 0))", "i32"),
    ("(call_indirect (param i64) (result i64) (i64.const 4) (i32.const 1)) (i32.wrap_i64)", "i32"),
    ("(global.set $g (i32.const 11)) (global.get $g)", "i32"),
    ("(select (i32.const 1) (i32.const 2) (i32.const 0))", "i32"),
    ("(i32.div_s (i32.const 1) (i32.const 0))", "i32"),
    ("(i32.load (i32.const 65536))", "i32"),
    ("(unreachable)", "i32"),
]
EXTRA = """(data (i32.const 0) "abcd") (global $g (mut i32) (i32.const 5)) (table 4 funcref) (elem (i32.const 1) $twice)
  (func $twice (param i32) (result i32) (i32.shl (local.get 0) (i32.const 1)))"""


@pytest.mark.parametrize("restorable", [False, True])
@pytest.mark.parametrize(("body", "kind"), VALUES)
def test_a_rewritten_function_gives_what_it_gave(body: str, kind: str, restorable: bool) -> None:
    text = function(body, f"(result {kind})", EXTRA)
    plain, rewritten = run_plain(text), run(text, restorable=restorable)
    assert rewritten.call("f") == plain.call("f")
    assert rewritten.memory()[:64] == plain.memory()[:64]
    assert rewritten.used


@pytest.mark.parametrize("restorable", [False, True])
@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.parent.name)
def test_the_handlers_do_the_same(path: Path, restorable: bool) -> None:
    module = path.read_bytes()
    plain, rewritten = run_plain(module), run(module, restorable=restorable)

    def play(one: Run) -> list[object]:
        names = [name for name in ("init", "handle") if name in admitted(module).functions]
        return [one.call(name) for name in [*names, *["handle"] * 5]]

    assert play(rewritten) == play(plain)
    assert rewritten.heard == plain.heard
    assert len(plain.heard) > 5
    assert bytes(rewritten.memory()) == bytes(plain.memory())
    assert rewritten.used > 1000


@pytest.mark.parametrize("restorable", [False, True])
def test_memory_does_not_shrink_when_it_grows_by_a_negative_number(restorable: bool) -> None:
    """wasm3's own memory.grow adds in 32 bits."""
    text = function("(memory.grow (i32.const -1))")
    assert run_plain(text).call("f") == 1, "wasm3 has learned it: the function of ours is not needed any more"
    tried = run(text, restorable=restorable)
    assert tried.call("f") == -1
    assert len(tried.memory()) == PAGE_BYTES


def test_imports_keep_their_places() -> None:
    calls = (
        "(drop (call $frame_info (i32.const 1)))"
        "(drop (call $state_set (i32.const 2) (i32.const 3) (i32.const 4) (i32.const 5)))"
        "(drop (call $log (i32.const 6) (i32.const 7) (i32.const 8)))"
    )
    module = guest(f"{calls} (i32.const 4)")
    plain, rewritten = run_plain(module), run(module)
    assert rewritten.call("handle") == plain.call("handle") == 4
    assert [name for name, *_ in rewritten.heard] == ["frame_info", "state_set", "log"]
    assert rewritten.heard == plain.heard


# --- what can be restored -----------------------------------------------------------------------------------

STATEFUL = """(module (memory (export "memory") 1 3)
  (global (mut i32) (i32.const 1)) (global i32 (i32.const 2)) (global (export "mine") (mut i64) (i64.const 3))
  (global (mut f64) (f64.const 4.5))
  (func (export "f") (result i32)
    (global.set 0 (i32.add (global.get 0) (i32.const 1))) (global.set 2 (i64.const 99)) (global.set 3 (f64.const 0.25))
    (i32.store (i32.const 4) (i32.const 77))
    (memory.grow (i32.const 1)))
  (func (export "size") (result i32) (memory.size))
  (func (export "count") (result i32) (global.get 0)))"""


def test_the_state_of_an_instance_can_be_put_back() -> None:
    verdict = admitted(STATEFUL, restorable=True)
    assert verdict.globals == [*(f"appliance:global:{index}" for index in (0, 2, 3)), "appliance:pages"]
    instance = Run(verdict.code, [])
    assert instance.call("size") == 1
    before = {name: instance.module.get_global(name) for name in verdict.globals}
    assert list(before.values()) == [1, 3, 4.5, 1]
    image = bytes(instance.memory())
    for _ in range(5):
        assert instance.call("f") == 1
        assert instance.call("f") == 2
        assert instance.call("f") == -1
        assert instance.call("size") == 3
        assert instance.call("count") == 4
        for name, value in before.items():
            instance.module.set_global(name, value)
        memory = instance.memory()
        assert len(memory) == 3 * len(image)
        memory[: len(image)] = image
        memory[len(image) :] = bytes(len(memory) - len(image))
        assert instance.call("count") == 1
        assert instance.call("size") == 1
        assert struct.unpack_from("<i", instance.memory(), 4) == (0,)


def test_without_a_memory_there_is_no_size_to_restore() -> None:
    verdict = admitted("(module (global (mut i32) (i32.const 1)))", restorable=True)
    assert verdict.globals == ["appliance:global:0"]
    assert verdict.memory_pages == 0


def test_a_memory_that_may_not_grow_does_not() -> None:
    text = '(module (memory 0 0) (func (export "f") (result i32) (memory.grow (i32.const 1))))'
    assert run(text, restorable=True).call("f") == -1


def test_others_do_not_pay_for_that() -> None:
    assert admitted(STATEFUL).globals == []
    code = admitted(STATEFUL).code
    assert code.count(b"appliance:") == code.count(GAS_NAME.encode()) == 1
