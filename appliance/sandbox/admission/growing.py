"""The function that stands for ``memory.grow`` where the memory's size is virtual. Pure.

In WebAssembly text::

    (func $grow (param $delta i32) (result i32)
      (call $usegas ...)
      (if (i32.gt_u (local.get $delta) (i32.sub (i32.const MOST) (global.get $pages)))
        (then (return (i32.const -1))))
      (local.set $delta (i32.add (local.get $delta) (global.get $pages)))     ;; the new size
      (if (i32.gt_u (local.get $delta) (memory.size))                         ;; memory restored may be larger
        (then (if (i32.eq (memory.grow (i32.sub (local.get $delta) (memory.size))) (i32.const -1))
          (then (return (i32.const -1))))))
      (global.get $pages)                                                     ;; the old size
      (global.set $pages (local.get $delta)))
"""

from appliance.sandbox.admission.binary import encode_signed, encode_u32
from appliance.sandbox.admission.code import (
    EMPTY_BLOCK,
    END,
    GLOBAL_GET,
    GLOBAL_SET,
    I32_CONST,
    IF,
    LOCAL_GET,
    LOCAL_SET,
    MEMORY_GROW,
    MEMORY_SIZE,
    RETURN,
)
from appliance.sandbox.admission.metering import Additions

_EQ, _GT_U, _ADD, _SUB = 0x46, 0x4B, 0x6A, 0x6B
_INSTRUCTIONS = 28


def grow_body(additions: Additions, most: int) -> bytes:
    """The body, without its size, for a memory of ``most`` pages at most."""
    if additions.pages is None:
        raise ValueError("the memory's size is not virtual")
    pages = encode_u32(additions.pages)
    get_pages = bytes((GLOBAL_GET,)) + pages
    delta = bytes((LOCAL_GET, 0))
    size = bytes((MEMORY_SIZE, 0))
    empty_if = bytes((IF, EMPTY_BLOCK & 0x7F))
    fail = bytes((I32_CONST,)) + encode_signed(-1)
    refuse = empty_if + fail + bytes((RETURN, END))
    return b"".join(
        (
            b"\0",  # no locals
            additions.charge(_INSTRUCTIONS),
            delta + bytes((I32_CONST,)) + encode_signed(most) + get_pages + bytes((_SUB, _GT_U)) + refuse,
            delta + get_pages + bytes((_ADD, LOCAL_SET, 0)),
            delta + size + bytes((_GT_U,)) + empty_if,
            delta + size + bytes((_SUB, MEMORY_GROW, 0)) + fail + bytes((_EQ,)) + refuse,
            bytes((END,)),
            get_pages + delta + bytes((GLOBAL_SET,)) + pages + bytes((END,)),
        )
    )
