"""Modules that are nearly right: real ones with some bytes or instructions changed. Every number gives the same mutant.

Random bytes are refused by the first check. So most changes are to code, and keep its types: another instruction of the
same kind, another constant, offset, variable or callee, a few instructions more or less.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from appliance.sandbox.admission import binary, code
from appliance.sandbox.admission.binary import (
    PREAMBLE,
    encode_section,
    encode_signed,
    encode_sized,
    encode_u32,
    encode_vector,
)
from appliance.sandbox.admission.layout import read

WILD_SHARE, OTHER_SECTION_SHARE = 0.15, 0.12
MAX_EDITS = 3
EDGES = (0, 1, -1, 2, 4, 16, 64, 255, 4096, 65_535, 65_536, 1 << 20, (1 << 31) - 1, -(1 << 31))
"""Numbers that are often one too many."""
ALIKE = (
    (*range(0x46, 0x50), *range(0x6A, 0x79)),  # i32, i32 -> i32
    (0x45, *range(0x67, 0x6A), 0xC0, 0xC1),  # i32 -> i32
    tuple(range(0x51, 0x5B)),  # i64, i64 -> i32
    tuple(range(0x7C, 0x8B)),  # i64, i64 -> i64
    tuple(range(0x5B, 0x61)),  # f32, f32 -> i32
    tuple(range(0x61, 0x67)),  # f64, f64 -> i32
    tuple(range(0x8B, 0x92)),  # f32 -> f32
    tuple(range(0x92, 0x99)),  # f32, f32 -> f32
    tuple(range(0x99, 0xA0)),  # f64 -> f64
    tuple(range(0xA0, 0xA7)),  # f64, f64 -> f64
    (0xA8, 0xA9, 0xBC),  # f32 -> i32
    (0xB2, 0xB3, 0xBE),  # i32 -> f32
    (0x28, *range(0x2C, 0x30)),  # loads of an i32
    (0x29, *range(0x30, 0x36)),  # of an i64
    (0x36, 0x3A, 0x3B),  # stores of an i32
    (0x37, *range(0x3C, 0x3F)),  # of an i64
    (code.BR_IF, 0x1A),  # one that takes an i32 away: br_if, drop
)
"""Opcodes that may stand for each other where the stack is concerned."""
KIN = {opcode: alike for alike in ALIKE for opcode in alike}
MEMORY_ACCESS = range(0x28, 0x3F)
VARIABLES = range(code.LOCAL_GET, code.GLOBAL_SET + 1)
CONSTANTS = (code.I32_CONST, code.I64_CONST)


@dataclass(frozen=True)
class Donor:
    """A module, taken apart."""

    name: str
    module: bytes
    sections: Mapping[int, bytes]
    bodies: Sequence[bytes]
    """Without their sizes."""
    starts: Sequence[int]
    """Where in each body its instructions begin."""
    functions: int
    """With those it imports."""


def donor(name: str, module: bytes) -> Donor:
    layout = read(module)
    return Donor(
        name,
        module,
        {kind: module[start:end] for kind, (start, end) in layout.sections.items()},
        [module[body.start : body.end] for body in layout.bodies],
        [body.code - body.start for body in layout.bodies],
        len(layout.imports) + len(layout.functions),
    )


def mutant(donors: Sequence[Donor], number: int, seed: str) -> tuple[Donor, bytes]:
    """Mutant ``number``, and the module that most of it is of."""
    random = Random(f"{seed} {number}")
    donor = random.choice(donors)
    draw = random.random()
    if draw < WILD_SHARE:
        return donor, _wild(random, donor.module, random.choice(donors).module)
    if draw < WILD_SHARE + OTHER_SECTION_SHARE:
        kind = random.choice([kind for kind in donor.sections if kind != binary.CODE])
        return donor, _joined({**donor.sections, kind: _spoilt(random, donor.sections[kind])}, donor.bodies)
    bodies, sections = list(donor.bodies), dict(donor.sections)
    for _ in range(random.randint(1, MAX_EDITS)):
        place = random.randrange(len(bodies))
        bodies[place] = _edited(random, donor, bodies[place], donor.starts[place])
    if random.random() < 0.03:
        other = random.choice(donors)
        bodies[random.randrange(len(bodies))] = random.choice(other.bodies)
    if random.random() < 0.03:
        sections[binary.START] = encode_u32(random.randrange(donor.functions))
    return donor, _joined(sections, bodies)


def _joined(sections: Mapping[int, bytes], bodies: Sequence[bytes]) -> bytes:
    whole = {**sections, binary.CODE: encode_vector([encode_sized(body) for body in bodies])}
    return b"".join((PREAMBLE, *(encode_section(kind, whole[kind]) for kind in binary.ORDER if kind in whole)))


def _wild(random: Random, module: bytes, other: bytes) -> bytes:
    """Changes that know nothing of what they change."""
    data = bytearray(module)
    for _ in range(random.randint(1, MAX_EDITS)):
        at, length = random.randrange(len(data)), random.randint(1, 40)
        match random.randrange(5):
            case 0:
                data[at] = random.randrange(256)
            case 1:
                data[at] ^= 1 << random.randrange(8)
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = random.randbytes(length)
            case _:
                start = random.randrange(len(other))
                data[at : at + length] = other[start : start + length]
    return bytes(data)


def _spoilt(random: Random, section: bytes) -> bytes:
    data = bytearray(section)
    for _ in range(random.randint(1, MAX_EDITS)):
        at = random.randrange(len(data))
        data[at] = random.choice((random.randrange(256), data[at] ^ 1 << random.randrange(8), (data[at] + 1) & 0x7F))
    return bytes(data)


def _edited(random: Random, donor: Donor, body: bytes, start: int) -> bytes:
    """One instruction of a body changed; as it was where earlier edits have left no instructions there."""
    try:
        found = list(code.instructions(body, start, len(body)))
    except binary.BrokenRuleError:
        return body
    if len(found) < 2:
        return body
    at, opcode, _, after = random.choice(found[:-1])
    draw = random.random()
    if draw < 0.75:
        instead = _instead(random, donor, body[at:after], opcode)
    elif draw < 0.92:
        instead = _snippet(random, donor) + body[at:after]
    elif draw < 0.96:
        instead = b""
    else:
        first, _, _, last = random.choice(found[:-1])
        instead = body[at:after] + body[first:last]
    return body[:at] + instead + body[after:]


def _instead(random: Random, donor: Donor, whole: bytes, opcode: int) -> bytes:
    """Another instruction for this one."""
    if opcode in MEMORY_ACCESS:
        offset = random.choice((0, 1, 4, 8, 65_535, 1 << 20, 0x7FFF_FFFF, 0xFFFF_FFFC, 0xFFFF_FFFF))
        return bytes((random.choice(KIN.get(opcode, (opcode,))), 0)) + encode_u32(offset)
    if opcode in KIN and len(whole) == 1:
        return bytes((random.choice([kin for kin in KIN[opcode] if kin != code.BR_IF]),))
    if opcode in CONSTANTS:
        return bytes((opcode,)) + encode_signed(random.choice((*EDGES, random.randrange(-(1 << 20), 1 << 20))))
    if opcode in VARIABLES:
        return bytes((opcode,)) + encode_u32(random.randrange(8))
    if opcode in (code.BR, code.BR_IF):
        return bytes((opcode,)) + encode_u32(random.randrange(6))
    if opcode == code.CALL:
        return bytes((code.CALL,)) + encode_u32(random.randrange(donor.functions))
    if opcode == code.CALL_INDIRECT:
        return bytes((opcode,)) + encode_u32(random.randrange(6)) + b"\0"
    return b"" if random.random() < 0.3 else whole + whole


def _snippet(random: Random, donor: Donor) -> bytes:
    """Instructions that leave the stack as it was."""
    first, second = (bytes((code.I32_CONST,)) + encode_signed(random.choice(EDGES)) for _ in range(2))
    return random.choice(
        (
            first + bytes((code.MEMORY_GROW, 0, 0x1A)),
            first + second + bytes((0x36, 0, 0)),  # i32.store
            first + second + first + bytes((0xFC, 11, 0)),  # memory.fill
            first + second + first + bytes((0xFC, 10, 0, 0)),  # memory.copy
            bytes((code.LOOP, 0x40, code.BR, 0, code.END)),
            bytes((code.LOOP, 0x40)) + first + bytes((code.BR_IF, 0, code.END)),
            first + second + bytes((random.choice((0x6D, 0x6E, 0x6F, 0x70)), 0x1A)),  # divisions
            first + bytes((code.IF, 0x40, code.UNREACHABLE, code.END)),
            bytes((code.CALL,)) + encode_u32(random.randrange(donor.functions)),
            first + bytes((code.GLOBAL_SET, 0)),  # the stack pointer, where there is one
        )
    )
