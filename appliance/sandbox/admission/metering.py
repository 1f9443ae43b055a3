"""A function's body with gas charged, every function's index moved up, and its memory's size virtual where asked.

Gas is charged at each function's entry, for all instructions that are in no loop, and at each loop's head for those of
the loop that are in no inner loop: whatever runs for long passes one or the other. The charge is CHARGE_COST and one
for each instruction, so that gas is about proportional to time, and an empty loop burns it fastest: a limit for so
many milliseconds of that stops no honest guest before they are over.

Millions of gas a second, wasm3 0.5.0 on x86-64: empty loop 4750, long sums 3300, multiplications 2500, stores 2300,
branches 2150, additions 2050, divisions 1600, loads 1550, calls 1450 (1350 by table), conversions 750, jump tables
600, square roots 550. A call of a function with 1400 locals, which wasm3 clears, 150. Only instructions that cost
nothing (nop) burn faster.

Gas does not bound ``memory.fill`` and ``memory.copy`` (one instruction, up to the whole memory) nor what the host does
for a guest: the deadline by the clock does.
"""

from dataclasses import dataclass

from appliance.sandbox.admission.binary import encode_signed, encode_u32
from appliance.sandbox.admission.bodies import checked
from appliance.sandbox.admission.code import (
    BLOCK,
    CALL,
    CALL_INDIRECT,
    EMPTY_BLOCK,
    END,
    GLOBAL_GET,
    GLOBAL_SET,
    I32_CONST,
    I32_LT_S,
    I32_SUB,
    IF,
    LOOP,
    MEMORY_GROW,
    MEMORY_SIZE,
)
from appliance.sandbox.admission.layout import Body, Layout

CHARGE_COST = 16
"""Of a charge itself: it takes the time of so many cheap instructions."""
BATCH = 10_000
"""Gas that the module takes from the host at once; the host's unit is as much. Charging the host each time took twice
as long."""
NO_LOCALS = b"\0"
_TOUCHED = frozenset({BLOCK, LOOP, IF, END, CALL, CALL_INDIRECT, MEMORY_SIZE, MEMORY_GROW})


@dataclass(frozen=True, slots=True)
class Additions:
    """Indices, in the rewritten module, of what it has beyond the original."""

    usegas: int
    """The imported function. All functions from here on have moved up by one."""
    gas: int
    """The global that holds what is left of a batch."""
    refill: int
    """The function that takes a batch."""
    grow: int
    """The function that stands for ``memory.grow``."""
    pages: int | None
    """The global that holds the virtual size of the memory; None where it is the real one."""

    def moved(self, function: int) -> int:
        """The index that a function of the original has."""
        return function + (function >= self.usegas)

    def charge(self, instructions: int) -> bytes:
        """Code that charges for so many instructions. They are no more than bytes, so it is an i32.

        ``gas -= cost; if (gas < 0) refill()``
        """
        gas = encode_u32(self.gas)
        cost = bytes((I32_CONST,)) + encode_signed(CHARGE_COST + instructions)
        spend = bytes((GLOBAL_GET,)) + gas + cost + bytes((I32_SUB, GLOBAL_SET)) + gas
        spent = bytes((GLOBAL_GET,)) + gas + bytes((I32_CONST, 0, I32_LT_S))
        return spend + spent + bytes((IF, EMPTY_BLOCK & 0x7F, CALL)) + encode_u32(self.refill) + bytes((END,))

    def refill_body(self) -> bytes:
        """``usegas(BATCH - gas); gas = BATCH``. Where the host has none left, it traps, and gas is still negative."""
        gas, batch = encode_u32(self.gas), bytes((I32_CONST,)) + encode_signed(BATCH)
        take = batch + bytes((GLOBAL_GET,)) + gas + bytes((I32_SUB, CALL)) + encode_u32(self.usegas)
        return NO_LOCALS + take + batch + bytes((GLOBAL_SET,)) + gas + bytes((END,))


@dataclass(slots=True)
class _Stretch:
    """The function, or a loop, without the loops within."""

    place: int
    """In the pieces, where its charge goes."""
    count: int = 0
    """Instructions."""


def metered(layout: Layout, body: Body, additions: Additions) -> bytes:
    """The body, without its size. BrokenRuleError as :func:`.bodies.checked`."""
    data = layout.data
    pieces = [data[body.start : body.code], b""]
    function = here = _Stretch(place=1)
    around: list[_Stretch | None] = []
    """By block around: for a loop, the stretch that it interrupts."""
    copied = body.code
    for at, opcode, argument, after in checked(layout, body):
        here.count += 1
        if opcode not in _TOUCHED:
            continue
        if opcode == LOOP:
            pieces += data[copied:after], b""
            copied = after
            around.append(here)
            here = _Stretch(place=len(pieces) - 1)
        elif opcode in (BLOCK, IF):
            around.append(None)
        elif opcode == END:
            if around and (outer := around.pop()):
                pieces[here.place] = additions.charge(here.count)
                here = outer
        elif instead := _replacement(opcode, argument, additions):
            pieces += data[copied:at], instead
            copied = after
    pieces[function.place] = additions.charge(function.count)
    pieces.append(data[copied : body.end])
    return b"".join(pieces)


def _replacement(opcode: int, argument: int, additions: Additions) -> bytes | None:
    """The instruction in the rewritten module; None where it stays as it is."""
    if opcode == CALL:
        return bytes((CALL,)) + encode_u32(additions.moved(argument))
    if opcode == CALL_INDIRECT:
        # LLVM writes the table's index in five bytes where it may be relocated; wasm3 reads one
        return bytes((CALL_INDIRECT,)) + encode_u32(argument) + b"\0"
    if opcode == MEMORY_GROW:
        return bytes((CALL,)) + encode_u32(additions.grow)
    return None if additions.pages is None else bytes((GLOBAL_GET,)) + encode_u32(additions.pages)
