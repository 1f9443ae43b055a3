import pytest
import wasmtime
from appliance.sandbox.module import PAGE_BYTES, MemoryLimitError, Module, ModuleError, prepare
from hypothesis import given, settings
from hypothesis import strategies as st
from sandbox_bench import NOTHING, assemble, guest

LIMIT = 16 * PAGE_BYTES


def memory_type(module: Module) -> tuple[int, int | None]:
    engine = wasmtime.Engine()
    limits = next(
        export.type.limits
        for export in wasmtime.Module(engine, module.code).exports
        if isinstance(export.type, wasmtime.MemoryType)
    )
    return limits.min, limits.max


def section(kind: int, content: bytes) -> bytes:
    assert len(content) < 128
    return bytes((kind, len(content))) + content


def test_imports_and_functions_are_found() -> None:
    module = prepare(guest("i32.const 0", init="i32.const 0"), LIMIT)
    assert ("appliance", "frame_info") in module.imports
    assert len(module.imports) == 19
    assert module.functions == {"handle", "init"}


def test_custom_sections_are_dropped_wherever_they_stand() -> None:
    custom = section(0, b"\4name" + b"whatever")
    padded = NOTHING[:8] + custom + NOTHING[8:] + custom
    assert b"whatever" in padded
    assert prepare(padded, LIMIT).code == prepare(NOTHING, LIMIT).code


@pytest.mark.parametrize(("declared", "most"), [("1", 16), ("1 4", 4), ("1 1000", 16), ("16", 16), ("0 0", 1)])
def test_memory_cannot_grow_over_the_limit(declared: str, most: int) -> None:
    module = prepare(assemble(f'(module (memory (export "memory") {declared}))'), LIMIT)
    assert memory_type(module) == (int(declared.split(maxsplit=1)[0]), most)


def test_memory_that_starts_over_the_limit() -> None:
    with pytest.raises(MemoryLimitError, match="1114112 bytes of memory, over its limit of 1048576"):
        prepare(assemble("(module (memory 17))"), LIMIT)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('(module (import "env" "memory" (memory 1)))', "imports the memory env.memory"),
        ('(module (import "env" "t" (table 1 funcref)))', "imports the table env.t"),
        ('(module (import "env" "g" (global i32)))', "imports the global env.g"),
        ("(module (memory i64 1))", "shared or 64-bit"),
        ("(module (memory 1 2 shared))", "shared or 64-bit"),
        ("(module (memory 1) (memory 1))", "2 memories"),
    ],
)
def test_what_no_handler_may_have(text: str, reason: str) -> None:
    with pytest.raises(ModuleError, match=reason):
        prepare(assemble(text), LIMIT)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "does not start"),
        (b"\0asm\2\0\0\0", "does not start"),
        (NOTHING[:-3], "too early"),
        (NOTHING[:8] + b"\1", "too early"),
        (NOTHING[:8] + b"\1\xff\xff\xff\xff\xff\1", "longer than 32 bits"),
        (NOTHING[:8] + b"\1\xff\xff\xff\xff\x1f", "longer than 32 bits"),
        (NOTHING[:8] + section(2, b"\xff\xff\3"), "65535 imports"),
        (NOTHING[:8] + section(2, b"\1\1\xff\1f\0\0"), "not UTF-8"),
        (NOTHING[:8] + section(2, b"\1\x81\2"), "257 bytes of a name"),
        (NOTHING[:8] + section(2, b"\1\1m\1f\7\0"), "thing of kind 7"),
        (NOTHING[:8] + section(7, b"\x81\x40"), "8193 exports"),
    ],
)
def test_damaged_modules(data: bytes, reason: str) -> None:
    with pytest.raises(ModuleError, match=reason):
        prepare(data, LIMIT)


@settings(deadline=None)
@given(st.data())
def test_any_bytes_are_a_module_or_refused(data: st.DataObject) -> None:
    """Only ModuleError ever comes out, of noise and of modules with a few bytes changed."""
    mutant = bytearray(data.draw(st.sampled_from([NOTHING, NOTHING[:8] + data.draw(st.binary(max_size=64))])))
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(mutant) - 1), st.integers(0, 255)), max_size=4)):
        mutant[at] = value
    try:
        module = prepare(bytes(mutant), LIMIT)
    except ModuleError:
        return
    assert prepare(module.code, LIMIT) == module


def test_a_valid_module_stays_valid() -> None:
    module = guest("i32.const 0", memory="1 9999", data='(data (i32.const 3) "abc")')
    wasmtime.Module.validate(wasmtime.Engine(), prepare(module, LIMIT).code)
