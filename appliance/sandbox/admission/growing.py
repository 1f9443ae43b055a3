"""The function that stands for ``memory.grow``. Pure.

wasm3 adds the pages wanted to those there are in 32 bits, so that growing by -1 takes a page away; this function knows
better. Where the memory's size must be restorable, it is virtual, too. In WebAssembly text, SIZE being ``memory.size``
or the global that holds the virtual size::

    (func (param $delta i32) (result i32)
      ;; a charge
      (if (i32.gt_u (local.get $delta) (i32.sub (i32.const MOST) SIZE))
        (then (return (i32.const -1))))

      ;; a real size:
      (memory.grow (local.get $delta)))

      ;; a virtual one:
      (local.set $delta (i32.add (local.get $delta) SIZE))                    ;; the new size
      (if (i32.gt_u (local.get $delta) (memory.size))                         ;; memory that was restored may be larger
        (then (if (i32.eq (memory.grow (i32.sub (local.get $delta) (memory.size))) (i32.const -1))
          (then (return (i32.const -1))))))
      SIZE                                                                    ;; the old one
      (global.set $pages (local.get $delta)))
"""

from appliance.sandbox.admission.binary import encode_signed, encode_u32
from appliance.sandbox.admission.code import (
    EMPTY_BLOCK,
    END,
    GLOBAL_GET,
    GLOBAL_SET,
    I32_ADD,
    I32_CONST,
    I32_EQ,
    I32_GT_U,
    I32_SUB,
    IF,
    LOCAL_GET,
    LOCAL_SET,
    MEMORY_GROW,
    MEMORY_SIZE,
    RETURN,
)
from appliance.sandbox.admission.metering import NO_LOCALS, Additions

_INSTRUCTIONS = 28
_DELTA = bytes((LOCAL_GET, 0))
_REAL_SIZE = bytes((MEMORY_SIZE, 0))
_REAL_GROW = bytes((MEMORY_GROW, 0))
_IF = bytes((IF, EMPTY_BLOCK & 0x7F))
_FAILURE = bytes((I32_CONST,)) + encode_signed(-1)
_FAIL_IF = _IF + _FAILURE + bytes((RETURN, END))


def grow_body(additions: Additions, most: int) -> bytes:
    """The body, without its size, for a memory of ``most`` pages at most."""
    pages = None if additions.pages is None else encode_u32(additions.pages)
    size = _REAL_SIZE if pages is None else bytes((GLOBAL_GET,)) + pages
    limit = bytes((I32_CONST,)) + encode_signed(most)
    check = _DELTA + limit + size + bytes((I32_SUB, I32_GT_U)) + _FAIL_IF
    grow = _DELTA + _REAL_GROW if pages is None else _grow_virtually(size, pages)
    return b"".join((NO_LOCALS, additions.charge(_INSTRUCTIONS), check, grow, bytes((END,))))


def _grow_virtually(size: bytes, pages: bytes) -> bytes:
    return b"".join(
        (
            _DELTA + size + bytes((I32_ADD, LOCAL_SET, 0)),
            _DELTA + _REAL_SIZE + bytes((I32_GT_U,)) + _IF,
            _DELTA + _REAL_SIZE + bytes((I32_SUB,)) + _REAL_GROW + _FAILURE + bytes((I32_EQ,)) + _FAIL_IF,
            bytes((END,)),
            size + _DELTA + bytes((GLOBAL_SET,)) + pages,
        )
    )
