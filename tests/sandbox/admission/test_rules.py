"""Each rule with a module that breaks it, and what the author is told."""

import pytest
import wasmtime
from admission_bench import LIMIT, MODULES, admitted, rejected, verdict_on
from sandbox_bench import NOTHING, guest

from appliance.manifest import MAX_MODULE_BYTES
from appliance.sandbox.admission import limits
from appliance.sandbox.admission.binary import PAGE_BYTES, PREAMBLE, encode_section, encode_u32
from appliance.sandbox.admission.verdict import Admitted, EngineName

ENGINES: tuple[EngineName, ...] = ("wasm3", "wasmtime")


def nested(kind: str, depth: int) -> str:
    opening = "(if (i32.const 1) (then " if kind == "if" else f"({kind} "
    closing = "))" if kind == "if" else ")"
    return f"(module (func {opening * depth} {closing * depth}))"


BROKEN = [
    # imports and exports
    ('(module (import "env" "launch" (func)))', "import", r"it imports env\.launch, which no ABI has"),
    ('(module (import "evil" "log" (func)))', "import", r"it imports evil\.log, which no ABI has"),
    ('(module (import "appliance" "log" (func (param i32 i32) (result i32))))', "signature",
     r"it imports appliance\.log as i\(ii\); it is i\(iii\)"),
    ('(module (import "appliance" "now_ns" (func (result i64 i64))))', "signature", r"as II\(\); it is I\(\)"),
    ('(module (import "metering" "usegas" (func (param i32))))', "import", "which is the host's alone"),
    ('(module (import "env" "\\0a" (func)))', "import", r"env\.\?, which"),
    (f'(module (import "env" "{"x" * 300}" (func)))', "import", r"x{76}\.\.\., which"),
    ('(module (import "env" "memory" (memory 1)))', "import-kind", r"imports the memory env\.memory"),
    ('(module (import "env" "t" (table 1 funcref)))', "import-kind", r"imports the table env\.t"),
    ('(module (import "env" "g" (global i32)))', "import-kind", r"imports the global env\.g"),
    ('(module (global (mut i32) (i32.const 1)) (export "appliance:global:0" (global 0)))', "reserved-name",
     "it exports appliance:global:0"),
    ('(module (func (export "appliance:handle")))', "reserved-name", "it exports appliance:handle"),
    ('(module (func (export "handle\\00")))', "name", "has a zero in it"),
    (f'(module (func (export "{"x" * 1025}")))', "name", "1025 bytes of a name"),
    ("(module (func" + "".join(f' (export "{name}")' for name in "abcd") + "))", "exports", "over 3 names"),
    # sizes
    ("(module" + "(type (func))" * 4097 + ")", "types", "4097 types are over the limit of 4096"),
    ("(module (func (param" + " i32" * 65 + ")))", "parameters", "65 parameters of a function"),
    ("(module (type (func (result" + " i32" * 17 + "))))", "results", "17 results of a function"),
    ("(module" + '(import "appliance" "now_ns" (func (result i64)))' * 257 + ")", "imports", "257 imports"),
    ("(module" + "(func)" * 20_001 + ")", "functions", "20001 functions"),
    ("(module" + "(global i32 (i32.const 0))" * 4097 + ")", "globals", "4097 globals"),
    ("(module (func" + ")(func".join(f' (export "{name}")' for name in range(4097)) + "))", "exports", "4097 exports"),
    ("(module (table 65537 funcref))", "table", "65537 elements is over the limit"),
    ("(module (table 1 funcref) (func)" + "(elem (i32.const 0) 0)" * 4097 + ")", "elements", "4097 segments"),
    ("(module (table 40000 funcref) (func)" + f"(elem (i32.const 0) {'0 ' * 33_000})" * 2 + ")", "elements",
     "33000 more elements"),
    ("(module (memory 1)" + '(data (i32.const 0) "")' * 16_385 + ")", "data", "16385 segments"),
    ("(module (func (local" + " i32" * 1901 + ")))", "locals", "has 1901 locals"),
    ("(module (func (param i32)" + "(local i64) (local i32)" * 950 + "))", "locals", "has 1901 locals"),
    ("(module (func (local i32)" + "nop " * (1 << 20) + "))", "body", "over the limit of 1048576"),
    # memory and tables
    ("(module (memory 17))", "memory", "starts with 1114112 bytes of memory, over its limit of 1048576"),
    ("(module (memory i64 1))", "memory-kind", "shared, 64-bit"),
    ("(module (memory 1 2 shared))", "memory-kind", "shared, 64-bit"),
    ("(module (memory 1 (pagesize 1)))", "memory-kind", "of other pages"),
    ("(module (memory 1) (memory 1))", "memory-kind", "2 memories"),
    ("(module (table 1 funcref) (table 1 funcref))", "table", "2 tables"),
    ("(module (table 1 externref))", "table", "something else than functions"),
    ("(module (table i64 1 funcref))", "table", "64-bit"),
    ('(module (memory 1) (data "abc"))', "passive-segment", "passive"),
    ("(module (func) (table 1 funcref) (elem func 0))", "passive-segment", "passive"),
    ("(module (func) (elem declare func 0))", "passive-segment", "passive"),
    ("(module (func) (table 1 funcref) (elem (table 0) (i32.const 0) funcref (ref.func 0)))", "feature", "later form"),
    ('(module (memory 1) (data (i32.const 65534) "abc"))', "data", "outside the memory"),
    ('(module (memory 1) (data (i32.const -1) "abc"))', "data", "outside the memory"),
    ("(module (func) (table 1 funcref) (elem (i32.const 1) 0))", "elements", "outside its table"),
    ("(module (func) (table 1 funcref) (elem (i32.const -1) 0))", "elements", "outside its table"),
    ("(module (global i32 (i32.add (i32.const 1) (i32.const 2))))", "constant", "more than one number"),
    ("(module (global funcref (ref.null func)))", "feature", "is a reference"),
    # code
    (nested("block", 2049), "nesting", "blocks are nested over 2048 deep"),
    (nested("if", 2049), "nesting", "blocks are nested over 2048 deep"),
    (nested("loop", 65), "loop-nesting", "loops are nested over 64 deep"),
    ("(module (func (i32.const 1) (loop (param i32) drop)))", "loop-parameters", "has parameters"),
    ('(module (memory 1) (func (memory.init 0 (i32.const 0) (i32.const 0) (i32.const 0))) (data (i32.const 0) ""))',
     "instruction", "memory.init"),
    ('(module (func (data.drop 0)) (memory 1) (data (i32.const 0) ""))', "instruction", "data.drop"),
    ("(module (table 1 funcref) (func (drop (table.get 0 (i32.const 0)))))", "instruction", "a table instruction"),
    ("(module (table 1 funcref) (func (drop (table.size 0))))", "instruction", "table.size"),
    ("(module (table 1 funcref) (func (drop (ref.null func))))", "instruction", "a reference instruction"),
    ("(module (func (drop (select (result i32) (i32.const 1) (i32.const 2) (i32.const 0)))))", "instruction",
     "a select of reference types"),
    ("(module (func (result v128) (v128.const i32x4 0 0 0 0)))", "feature", "a SIMD vector"),
    ("(module (func (drop (v128.const i32x4 0 0 0 0))))", "feature", "SIMD support is not enabled"),
    ("(module (memory 1) (func (drop (i32.atomic.load (i32.const 0)))))", "feature", "threads support is not enabled"),
    ("(module (func $f (return_call $f)))", "feature", "tail calls support is not enabled"),
    ("(module (tag))", "feature", "exception tags"),
    ("(module (func (try_table)))", "feature", "exceptions support is not enabled"),
    ("(module (type (struct)))", "feature", "is not that of a function"),
]  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("text", "rule", "message"), BROKEN, ids=lambda value: value[:60])
def test_what_no_module_may_have(engine: EngineName, text: str, rule: str, message: str) -> None:
    verdict = rejected(text, engine)
    assert verdict.rule == rule
    with pytest.raises(ValueError, match=message):
        raise ValueError(verdict.message)
    assert verdict.message.isprintable()
    assert len(verdict.message) < 600


HARMLESS = [
    nested("block", limits.MAX_BLOCK_DEPTH),
    nested("if", limits.MAX_BLOCK_DEPTH),
    nested("loop", limits.MAX_LOOP_DEPTH),
    "(module (func " + nested("loop", limits.MAX_LOOP_DEPTH)[14:-2] * 2 + "))",
    '(module (func (export "a") (export "b") (export "c")))',
    "(module (func (local" + " i64" * limits.MAX_LOCALS + ")))",
    "(module (func (i32.const 1) (block (param i32) drop) (loop (result i32) (i32.const 1)) drop))",
    '(module (import "env" "yomo_context_tag" (func (result i32))))',
    '(module (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32))))',
    '(module (memory 1) (data (i32.const 65533) "abc"))',
    "(module (memory 16))",
    "(module (table 65536 funcref) (func) (elem (i32.const 65535) 0))",
    "(module)",
]  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("text", HARMLESS, ids=lambda value: value[:60])
def test_what_just_keeps_to_the_rules(engine: EngineName, text: str) -> None:
    admitted(text, engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.parent.name)
def test_the_handlers_are_admitted(engine: EngineName, path) -> None:
    verdict = admitted(path.read_bytes(), engine)
    assert verdict.functions["handle"] == "i()"
    assert ("appliance", "emit", "i(iiii)") in verdict.imports
    assert verdict.memory_pages > 0


def test_what_is_admitted_is_described() -> None:
    verdict = admitted(guest("i32.const 0", init="i32.const 0"))
    assert ("appliance", "frame_info", "i(i)") in verdict.imports
    assert len(verdict.imports) == 19
    assert verdict.functions == {"handle": "i()", "init": "i()"}
    assert verdict.digest == admitted(guest("i32.const 0", init="i32.const 0"), "wasmtime").digest


def test_a_function_that_is_only_passed_on_is_no_function_of_the_module() -> None:
    text = '(module (import "appliance" "now_ns" (func (result i64))) (export "handle" (func 0)))'
    assert admitted(text).functions == {}


def test_the_offset_is_that_of_the_instruction() -> None:
    module = bytes(
        wasmtime.wat2wasm("(module (func nop nop nop) (table 3 funcref) (func nop nop (table.size 0) drop))")
    )
    verdict = rejected(module)
    assert verdict.offset == module.index(b"\xfc\x10\0")


def test_the_offset_is_that_of_what_is_invalid() -> None:
    module = bytes(wasmtime.wat2wasm("(module (func (i32.add)))"))
    verdict = rejected(module)
    assert (verdict.rule, verdict.offset) == ("invalid", module.index(b"\x6a"))
    assert "type mismatch" in verdict.message


# --- damage -------------------------------------------------------------------------------------------------


def section(kind: int, content: bytes) -> bytes:
    return PREAMBLE + encode_section(kind, content)


TYPED = section(1, b"\1\x60\0\0")
DAMAGED = [
    (b"", "not-a-module", "does not start"),
    (b"\0asm\2\0\0\0", "not-a-module", "does not start"),
    (b"\0asm\r\0\1\0", "not-a-module", "does not start"),  # a component
    (NOTHING[:-3], "damaged", "too early"),
    (PREAMBLE + b"\1", "damaged", "too early"),
    (PREAMBLE + b"\1\xff\xff\xff\xff\xff\1", "damaged", "longer than 32 bits"),
    (PREAMBLE + b"\1\xff\xff\xff\xff\x1f", "damaged", "longer than 32 bits"),
    (section(14, b""), "damaged", "the section of kind 14 at offset 8 is unknown"),
    (TYPED + section(1, b"\0")[8:], "damaged", "out of order"),
    (section(3, b"\0") + section(1, b"\0")[8:], "damaged", "out of order"),
    (section(1, b"\0\0"), "damaged", "1 bytes are left over"),
    (section(1, b"\1\x60\1\x33\0"), "feature", "of an unknown type 0x33"),
    (section(2, b"\xff\xff\3"), "imports", "65535 imports"),
    (section(2, b"\1\1\xff\1f\0\0"), "damaged", "not UTF-8"),
    (section(2, b"\1\1m\1f\7\0"), "import-kind", "thing of kind 7"),
    (section(2, b"\1\1m\1f\0\0"), "damaged", "there is no type 0"),
    (section(3, b"\1\0"), "damaged", "there is no type 0"),
    (TYPED + encode_section(3, b"\1\0"), "damaged", "1 functions have 0 bodies"),
    (TYPED + encode_section(10, b"\1\2\0\x0b"), "damaged", "belongs to no function"),
    (TYPED + encode_section(3, b"\x80\x40"), "damaged", "do not fit"),
    (section(7, b"\1\1f\0\0"), "damaged", "there is no function 0"),
    (section(8, b"\0"), "damaged", "there is no function 0"),
    (section(6, b"\1\x7f\2\x41\0\x0b"), "damaged", "global at offset 11"),
    (section(6, b"\1\x7f\0\x23\0\x0b"), "constant", "not a plain number"),
    (section(6, b"\1\x7f\0\x41" + b"\x80" * 9 + b"\0\x0b"), "damaged", "longer than 32 bits"),
    (section(5, b"\1\0\1") + encode_section(11, b"\1\0\x43\0\0\0\0\x0b\0"), "constant", "not an integer"),
    (section(4, b"\1\x70\0\1") + encode_section(9, b"\1\0\x41\0\x0b\1\0"), "damaged", "there is no function 0"),
    (TYPED + encode_section(3, b"\1\0") + encode_section(10, b"\1" + encode_u32(1 << 31)), "body", "over the limit"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "rule", "reason"), DAMAGED)
def test_damaged_modules(data: bytes, rule: str, reason: str) -> None:
    verdict = rejected(data)
    assert verdict.rule == rule
    assert reason in verdict.message


def test_a_module_over_the_size_that_manifests_allow() -> None:
    verdict = rejected(NOTHING + bytes(MAX_MODULE_BYTES))
    assert (verdict.rule, verdict.message) == (
        "size",
        f"it has {len(NOTHING) + MAX_MODULE_BYTES} bytes, over the limit of 8388608",
    )


def test_a_damaged_name_section_is_no_fault() -> None:
    assert isinstance(verdict_on(NOTHING + encode_section(0, b"\4name\1\x7f\x7f")), Admitted)


def test_the_limit_of_memory_is_the_handlers_own() -> None:
    assert rejected("(module (memory 3))", memory_bytes=2 * PAGE_BYTES).rule == "memory"
    assert admitted("(module (memory 3))", memory_bytes=LIMIT).memory_pages == 3
