from collections import deque
from itertools import pairwise

import pytest
import wasmtime
from admission_bench import MODULES
from hypothesis import given
from hypothesis import strategies as st

from appliance.sandbox.admission import code
from appliance.sandbox.admission.binary import BrokenRuleError
from appliance.sandbox.admission.code import Instruction, instructions
from appliance.sandbox.admission.layout import read


def walk(data: bytes) -> list[Instruction]:
    return list(instructions(data, 0, len(data)))


def body_of(text: str) -> list[Instruction]:
    layout = read(bytes(wasmtime.wat2wasm(text)))
    body = layout.bodies[0]
    return list(instructions(layout.data, body.code, body.end))


@pytest.mark.parametrize(
    ("data", "opcode", "argument"),
    [
        (b"\x00", code.UNREACHABLE, 0),
        (b"\x02\x40", code.BLOCK, code.EMPTY_BLOCK),
        (b"\x03\x7f", code.LOOP, -1),
        (b"\x04\x05", code.IF, 5),
        (b"\x02\x80\x01", code.BLOCK, 128),
        (b"\x0c\x03", code.BR, 3),
        (b"\x0e\x02\x00\x81\x01\x01", code.BR_TABLE, 0),
        (b"\x10\x07", code.CALL, 7),
        (b"\x10\x87\x80\x80\x80\x00", code.CALL, 7),
        (b"\x11\x04\x80\x80\x80\x80\x00", code.CALL_INDIRECT, 4),
        (b"\x1b", 0x1B, 0),
        (b"\x22\x81\x01", code.LOCAL_TEE, 129),
        (b"\x28\x02\x84\x08", 0x28, 0),
        (b"\x3e\x00\x00", 0x3E, 0),
        (b"\x3f\x00", code.MEMORY_SIZE, 0),
        (b"\x40\x00", code.MEMORY_GROW, 0),
        (b"\x41\x80\x80\x80\x80\x78", code.I32_CONST, 0),
        (b"\x42\x80\x80\x80\x80\x80\x80\x80\x80\x80\x7f", code.I64_CONST, 0),
        (b"\x43\x0b\x0b\x0b\x0b", code.F32_CONST, 0),
        (b"\x44\x0b\x0b\x0b\x0b\x0b\x0b\x0b\x0b", code.F64_CONST, 0),
        (b"\x45", 0x45, 0),
        (b"\xc4", 0xC4, 0),
        (b"\xfc\x07", 0xFC07, 0),
        (b"\xfc\x0a\x00\x00", 0xFC0A, 0),
        (b"\xfc\x8b\x00\x00", 0xFC0B, 0),
    ],
)
def test_what_an_instruction_carries(data: bytes, opcode: int, argument: int) -> None:
    assert walk(data + b"\x0b") == [(0, opcode, argument, len(data)), (len(data), code.END, 0, len(data) + 1)]
    for end in range(1, len(data)):
        with pytest.raises(BrokenRuleError) as failure:
            walk(data[:end])
        assert failure.value.rule == "damaged"


FOREIGN = {
    0x06: "exception",
    0x0A: "exception",
    0x12: "tail call",
    0x15: "call by reference",
    0x16: "unknown",
    0x1C: "select of reference types",
    0x1F: "exception",
    0x25: "table",
    0xC5: "unknown",
    0xD0: "reference",
    0xD2: "reference",
    0xFB: "garbage collection",
    0xFD: "SIMD",
    0xFE: "threads",
    0xFF: "unknown",
}


@pytest.mark.parametrize(("opcode", "name"), FOREIGN.items())
def test_other_instructions_are_refused_by_name_and_offset(opcode: int, name: str) -> None:
    with pytest.raises(BrokenRuleError, match=f"{name}.*0x{opcode:02x}.* at offset 1,") as failure:
        walk(bytes((1, opcode, 0, 0, 0, 0)))
    assert (failure.value.rule, failure.value.offset) == ("instruction", 1)


@pytest.mark.parametrize("number", [*range(8, 10), *range(12, 20), 200])
def test_other_instructions_after_the_prefix_are_refused(number: int) -> None:
    with pytest.raises(BrokenRuleError, match="at offset 0") as failure:
        walk(b"\xfc" + (bytes((number,)) if number < 128 else b"\xc8\1") + bytes(8))
    assert failure.value.rule == "instruction"


def test_each_opcode_of_the_plain_instruction_set_is_known() -> None:
    """Those that take nothing with them, one after another."""
    plain = bytes((0, 1, 5, 0xB, 0xF, 0x1A, 0x1B, *range(0x45, 0xC5)))
    assert [opcode for _, opcode, _, _ in walk(plain)] == list(plain)


def test_instructions_are_where_the_assembler_put_them() -> None:
    found = body_of("(module (func $f (param i32) (loop (br_if 0 (local.get 0))) (call $f (i32.const 300))))")
    assert [opcode for _, opcode, _, _ in found] == [3, 0x20, 0x0D, 0x0B, 0x41, 0x10, 0x0B]
    assert all(before[3] == after[0] for before, after in pairwise(found))


def test_the_handlers_are_walked_to_the_end() -> None:
    for path in MODULES:
        layout = read(path.read_bytes())
        for body in layout.bodies:
            ((_, opcode, _, after),) = deque(instructions(layout.data, body.code, body.end), maxlen=1)
            assert (opcode, after) == (code.END, body.end)


@given(st.binary(max_size=200))
def test_any_bytes_are_walked_or_refused(data: bytes) -> None:
    at = 0
    try:
        for start, _, _, after in instructions(data, 0, len(data)):
            assert start == at
            assert at < after <= len(data)
            at = after
    except BrokenRuleError as error:
        assert error.rule in ("damaged", "instruction")
    else:
        assert at == len(data)
