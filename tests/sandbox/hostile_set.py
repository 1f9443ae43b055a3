"""Guests that mean harm, or are broken: each with what must become of it. WebAssembly text.

Where it is not refused as it is loaded, a guest is good about every frame but one that begins with POISON: so it can be
seen to serve again, and how soon.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import wasmtime
from sandbox_bench import IMPORTS, TAG, assemble

from appliance.manifest import Limits

POISON = b"\xee"
DEADLINE_MS = 200
LIMITS = Limits(deadline_ms=DEADLINE_MS, memory_mb=2)
LOG_LINES = 8000
RULE = re.compile(r"refused \(([a-z0-9-]+)\)")
"""Of admission, in what a handler's last failure says."""


@dataclass(frozen=True)
class Hostile:
    """One of them."""

    name: str
    module: bytes
    verdict: frozenset[str]
    """Kinds of fault that are right, ``ok`` for a frame that goes well, or names of rules that refuse it."""
    refused: bool = False
    """It is refused before it runs."""
    starts: bool = True
    """It comes as far as handling frames."""
    limits: Limits = LIMITS
    changes: dict[str, Any] = field(default_factory=dict)
    """Of the handler's spec."""
    poisons: int = 1
    """How many frames are poisoned, one after another."""


def on_poison(evil: str, extra: str = "", memory: str = "1", wasi_nn: bool = False) -> bytes:
    """``evil`` runs for poisoned frames, and gives the status; it may use the locals $i and $j."""
    imports = "".join(f'(import "appliance" "{name}" (func ${name} {kind}))' for name, kind in IMPORTS.items())
    if wasi_nn:
        imports += '(import "wasi_ephemeral_nn" "load" (func $load (param i32 i32 i32 i32 i32) (result i32)))'
    return assemble(
        f"""(module {imports} (memory (export "memory") {memory}) {extra}
        (func $evil (result i32) (local $i i32) (local $j i32) {evil})
        (func (export "handle") (result i32)
          (drop (call $frame_read (i32.const 0) (i32.const 0) (i32.const 1)))
          (if (result i32) (i32.eq (i32.load8_u (i32.const 0)) (i32.const {POISON[0]}))
            (then (call $evil)) (else (i32.const 0)))))"""
    )


def _emit(data: str, tag: int = TAG, format: int = 5, length: int | None = None) -> bytes:
    """Emits bytes from 16 on, and returns what that returned."""
    size = len(data) if length is None else length
    text = "".join(f"\\{byte:02x}" for byte in data.encode())
    call = f"(call $emit (i32.const {tag}) (i32.const {format}) (i32.const 16) (i32.const {size}))"
    return on_poison(call, extra=f'(data (i32.const 16) "{text}")', memory="18")


def _load(model: bytes) -> bytes:
    """Loads 4096 bytes as a model: these, and zeros."""
    text = "".join(f"\\{byte:02x}" for byte in model)
    return on_poison(
        "(call $load (i32.const 64) (i32.const 1) (i32.const 4) (i32.const 0) (i32.const 32))",
        extra=f'(data (i32.const 64) "\\80\\00\\00\\00\\00\\10\\00\\00") (data (i32.const 128) "{text}")',
        wasi_nn=True,
    )


def nested(loops: int, inner: str) -> str:
    return "(loop " * loops + inner + ")" * loops


def invalid_body() -> bytes:
    """A body that leaves an i64 where an i32 is due: the types are edited behind the assembler's back."""
    module = bytearray(
        assemble('(module (memory (export "memory") 1) (func (export "handle") (result i32) i32.const 7))')
    )
    at = module.rindex(bytes((0x41, 7, 0x0B)))  # i32.const 7, end
    module[at] = 0x42  # i64.const
    return bytes(module)


def unvalidated(text: str) -> bytes:
    """Text with features that are refused here, and that the assembler knows."""
    return bytes(wasmtime.wat2wasm(text))


HANDLE = '(func (export "handle") (result i32) (i32.const 0))'

HOSTILE = (
    # --- run, and are stopped ------------------------------------------------------------------------------
    Hostile("endless loop", on_poison("(loop $l br $l) (i32.const 0)"), frozenset({"gas", "deadline"})),
    Hostile(
        "endless loop in the start function",
        unvalidated(f'(module (memory (export "memory") 1) (func $s (loop $l br $l)) (start $s) {HANDLE})'),
        frozenset({"gas", "deadline"}),
        starts=False,
    ),
    Hostile(
        "endless loop in init",
        unvalidated(
            '(module (memory (export "memory") 1)'
            f' (func (export "init") (result i32) (loop $l br $l) (i32.const 0)) {HANDLE})'
        ),
        frozenset({"gas", "deadline"}),
        starts=False,
    ),
    Hostile(
        "loop of host calls", on_poison("(loop $l (drop (call $now_ns)) (br $l)) (i32.const 0)"), frozenset({"budget"})
    ),
    Hostile(
        "loop of host calls, within a budget that is too large",
        on_poison("(loop $l (drop (call $now_ns)) (br $l)) (i32.const 0)"),
        frozenset({"gas", "deadline", "budget"}),  # whichever comes first on this machine
        limits=Limits(deadline_ms=DEADLINE_MS, memory_mb=2, host_calls=500_000),
    ),
    Hostile(
        "memory.grow bomb",
        on_poison("(loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) (i32.const 0)"),
        frozenset({"ok"}),  # it gets what it may have, and -1 then
    ),
    Hostile(
        "memory.fill loop",
        on_poison("(loop $l (memory.fill (i32.const 0) (i32.const 1) (i32.const 65536)) (br $l)) (i32.const 0)"),
        frozenset({"gas", "deadline"}),
    ),
    Hostile(
        "deep recursion",
        on_poison("(call $evil)"),
        frozenset({"trap"}),
    ),
    Hostile(
        "recursion inside nested loops",
        on_poison(nested(7, "(drop (call $evil))") + "(i32.const 0)"),
        frozenset({"trap", "crash"}),
    ),
    Hostile(
        "recursion inside as many nested loops as may be",
        on_poison(nested(64, "(drop (call $evil))") + "(i32.const 0)"),
        frozenset({"trap", "crash", "memory"}),
    ),
    Hostile("out of bounds", on_poison("(i32.load (i32.const -4))"), frozenset({"trap"})),
    Hostile("division by zero", on_poison("(i32.div_u (i32.const 1) (local.get $i))"), frozenset({"trap"})),
    Hostile(
        "bad indirect call",
        on_poison("(call_indirect (result i32) (i32.const 3))", extra="(table 4 funcref)"),
        frozenset({"trap"}),
    ),
    Hostile(
        "indirect call of another type",
        on_poison(
            "(call_indirect (result i32) (i32.const 0))", extra="(table 1 funcref) (func $v) (elem (i32.const 0) $v)"
        ),
        frozenset({"trap"}),
    ),
    Hostile("oversize output", _emit("", format=6, length=(1 << 20) + 1), frozenset({"error"})),
    Hostile("output outside the memory", _emit("", format=6, length=-1), frozenset({"error"})),
    Hostile("malformed output", _emit('{"label": '), frozenset({"error"})),
    Hostile("forbidden tag", _emit("1", tag=TAG + 1), frozenset({"error"})),
    Hostile("reserved tag", _emit("1", tag=0xF000), frozenset({"error"})),
    Hostile(
        "emit flood",
        on_poison(
            f"""(loop $l (br_if $l (i32.eqz (call $emit (i32.const {TAG}) (i32.const 6) (i32.const 0) (i32.const 0)))))
            (i32.const 0)"""
        ),
        frozenset({"budget"}),
        limits=Limits(deadline_ms=DEADLINE_MS, memory_mb=2, emits_per_second=20),
        poisons=3,
    ),
    Hostile(
        "log flood",
        on_poison(
            f"""(local.set $i (i32.const {LOG_LINES}))
            (loop $l (drop (call $log (i32.const 40) (i32.const 0) (i32.const 64)))
              (br_if $l (local.tee $i (i32.sub (local.get $i) (i32.const 1))))) (i32.const 0)"""
        ),
        frozenset({"ok"}),
    ),
    Hostile(
        "model of death",
        _load(b"\x1c\0\0\0TFL3\xff\xff"),
        frozenset({"error"}),
        changes={"guest_models": 1},
    ),
    Hostile(
        "a model, where none is allowed",
        _load(b"\x1c\0\0\0TFL3"),
        frozenset({"error"}),
    ),
    # --- refused --------------------------------------------------------------------------------------------
    Hostile("no module at all", b"\x7fELF" + bytes(64), frozenset({"not-a-module"}), refused=True),
    Hostile("half a module", on_poison("(i32.const 0)")[:-20], frozenset({"damaged"}), refused=True),
    Hostile("type-invalid body", invalid_body(), frozenset({"invalid"}), refused=True),
    Hostile(
        "4 GB declared",
        unvalidated(f'(module (memory (export "memory") 65536) {HANDLE})'),
        frozenset({"memory"}),
        refused=True,
    ),
    Hostile(
        "memory64",
        unvalidated(f'(module (memory (export "memory") i64 1) {HANDLE})'),
        frozenset({"memory-kind"}),
        refused=True,
    ),
    Hostile(
        "shared memory",
        unvalidated(f'(module (memory (export "memory") 1 2 shared) {HANDLE})'),
        frozenset({"memory-kind"}),
        refused=True,
    ),
    Hostile(
        "SIMD",
        unvalidated(f'(module (memory (export "memory") 1) (func (drop (v128.const i32x4 0 0 0 0))) {HANDLE})'),
        frozenset({"feature"}),
        refused=True,
    ),
    Hostile(
        "an import that no ABI has",
        unvalidated(f'(module (import "env" "launch" (func)) (memory (export "memory") 1) {HANDLE})'),
        frozenset({"import"}),
        refused=True,
    ),
    Hostile(
        "an import of another type",
        unvalidated(f'(module (import "appliance" "log" (func (param i32))) (memory (export "memory") 1) {HANDLE})'),
        frozenset({"signature"}),
        refused=True,
    ),
    Hostile(
        "metering of its own",
        unvalidated(f'(module (import "metering" "usegas" (func (param i32))) (memory (export "memory") 1) {HANDLE})'),
        frozenset({"import"}),
        refused=True,
    ),
    Hostile(
        "100 nested loops",
        on_poison(nested(100, "(drop (call $evil))") + "(i32.const 0)"),
        frozenset({"loop-nesting"}),
        refused=True,
    ),
    Hostile(
        "loop parameters",
        unvalidated(
            f'(module (memory (export "memory") 1) (func (param i32) (local.get 0) (loop (param i32) drop)) {HANDLE})'
        ),
        frozenset({"loop-parameters"}),
        refused=True,
    ),
)
