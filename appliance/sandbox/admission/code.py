"""The instructions of a function's body, one after another, and what each carries with it. Pure.

WebAssembly 1.0 with sign extension, saturating conversions, memory.copy and memory.fill, and blocks of several values:
what wasm3 runs and every validator knows. Anything else is refused by its name.
"""

from collections.abc import Iterator

from appliance.sandbox.admission.binary import BrokenRuleError, Reader

Instruction = tuple[int, int, int, int]
"""Offset, opcode, argument, offset of the next.

The argument is the index of an instruction that has one; a block's type as :data:`EMPTY_BLOCK`, minus a value type, or
the index of a function type; otherwise 0. After the prefix 0xFC, the opcode is 0xFC00 plus what follows it.
"""

UNREACHABLE, BLOCK, LOOP, IF, ELSE, END = 0x00, 0x02, 0x03, 0x04, 0x05, 0x0B
BR, BR_IF, BR_TABLE, RETURN, CALL, CALL_INDIRECT = 0x0C, 0x0D, 0x0E, 0x0F, 0x10, 0x11
LOCAL_GET, LOCAL_SET, LOCAL_TEE, GLOBAL_GET, GLOBAL_SET = range(0x20, 0x25)
MEMORY_SIZE, MEMORY_GROW = 0x3F, 0x40
I32_CONST, I64_CONST, F32_CONST, F64_CONST = range(0x41, 0x45)
I32_EQ, I32_LT_S, I32_GT_U, I32_ADD, I32_SUB = 0x46, 0x48, 0x4B, 0x6A, 0x6B
EMPTY_BLOCK = -0x40

_NONE, _INDEX, _BLOCK, _BR_TABLE, _INDIRECT, _MEMARG, _LEB, _SKIP_4, _SKIP_8, _ZERO, _PREFIX, _REFUSED = range(12)


def _table() -> tuple[int, ...]:
    """What follows each opcode."""
    follows = [_REFUSED] * 256
    for opcode in (0x00, 0x01, ELSE, END, RETURN, 0x1A, 0x1B, *range(0x45, 0xC5)):
        follows[opcode] = _NONE
    for opcode in (BR, BR_IF, CALL, *range(LOCAL_GET, GLOBAL_SET + 1)):
        follows[opcode] = _INDEX
    for opcode in (BLOCK, LOOP, IF):
        follows[opcode] = _BLOCK
    for opcode in range(0x28, 0x3F):
        follows[opcode] = _MEMARG
    for opcode in (I32_CONST, I64_CONST):
        follows[opcode] = _LEB
    for opcode in (MEMORY_SIZE, MEMORY_GROW):
        follows[opcode] = _ZERO
    follows[BR_TABLE], follows[CALL_INDIRECT], follows[0xFC] = _BR_TABLE, _INDIRECT, _PREFIX
    follows[F32_CONST], follows[F64_CONST] = _SKIP_4, _SKIP_8
    return tuple(follows)


_FOLLOWS = _table()
_MEMORY_INDICES = {**dict.fromkeys(range(8), 0), 10: 2, 11: 1}
"""By opcode after 0xFC: how many indices of memories follow."""

_FOREIGN = (
    (range(0x06, 0x0B), "an exception instruction"),
    (range(0x12, 0x16), "a tail call or a call by reference"),
    (range(0x18, 0x1A), "an exception instruction"),
    (range(0x1C, 0x1D), "a select of reference types"),
    (range(0x1F, 0x20), "an exception instruction"),
    (range(0x25, 0x27), "a table instruction"),
    (range(0xD0, 0xD7), "a reference instruction"),
    (range(0xFB, 0xFC), "a garbage collection instruction"),
    (range(0xFD, 0xFE), "a SIMD instruction"),
    (range(0xFE, 0xFF), "a threads instruction"),
)
_FOREIGN_AFTER_PREFIX = {
    8: "memory.init",
    9: "data.drop",
    12: "table.init",
    13: "elem.drop",
    14: "table.copy",
    15: "table.grow",
    16: "table.size",
    17: "table.fill",
}


def instructions(data: bytes, start: int, end: int) -> Iterator[Instruction]:
    """Those of the bytes from ``start`` to ``end``, a body without its locals.

    BrokenRuleError ``instruction`` for one that is not to be run, ``damaged`` where the bytes end within one.
    """
    reader = Reader(data, start, end)
    while (at := reader.at) < end:
        opcode = data[at]
        reader.at = at + 1
        follows = _FOLLOWS[opcode]
        argument = 0
        if follows == _INDEX:
            byte = data[at + 1] if at + 1 < end else 0x80
            if byte < 0x80:  # nearly always; the walk is half as fast without
                reader.at = at + 2
                argument = byte
            else:
                argument = reader.u32()
        elif follows == _MEMARG:
            reader.u32()
            reader.u32()
        elif follows == _LEB:
            reader.signed(64)
        elif follows == _BLOCK:
            argument = reader.signed(33)
        elif follows != _NONE:
            opcode, argument = _rarer(reader, at, opcode, follows)
        yield at, opcode, argument, reader.at


def _rarer(reader: Reader, at: int, opcode: int, follows: int) -> tuple[int, int]:
    """Read what follows one of the other instructions; its opcode and argument."""
    argument = 0
    if follows == _BR_TABLE:
        for _ in range(reader.u32() + 1):
            reader.u32()
    elif follows == _INDIRECT:
        argument = reader.u32()
        reader.u32()
    elif follows == _SKIP_4:
        reader.skip(4)
    elif follows == _SKIP_8:
        reader.skip(8)
    elif follows == _ZERO:
        reader.byte()
    elif follows == _PREFIX:
        number = reader.u32()
        if number not in _MEMORY_INDICES:
            name = _FOREIGN_AFTER_PREFIX.get(number, f"the unknown instruction 0xfc {number}")
            raise BrokenRuleError("instruction", f"it has {name} at offset {at}, which is not to be run", at)
        reader.skip(_MEMORY_INDICES[number])
        opcode = 0xFC00 | number
    else:
        name = next((name for range, name in _FOREIGN if opcode in range), "an unknown instruction")
        raise BrokenRuleError(
            "instruction", f"it has {name} (0x{opcode:02x}) at offset {at}, which is not to be run", at
        )
    return opcode, argument
