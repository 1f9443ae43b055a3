"""Mutants of real modules through all of admission: a verdict comes out and nothing else."""

from functools import cache

import wasmtime
from admission_bench import LIMIT, MODULES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sandbox_bench import NOTHING, assemble

from appliance.sandbox.admission.judge import engine_for, judge
from appliance.sandbox.admission.layout import read
from appliance.sandbox.admission.verdict import Admitted, EngineName, Order, Rejected

RICH = assemble(
    """(module (import "appliance" "now_ns" (func (result i64))) (memory 1 9) (table 3 funcref)
    (global (mut i64) (i64.const 5)) (data (i32.const 9) "abc") (elem (i32.const 1) 1 2)
    (func (export "handle") (result i32) (loop (br_if 0 (i32.const 0))) (call 2 (i32.const 3)))
    (func (param i32) (result i32) (if (result i32) (local.get 0) (then (memory.grow (i32.const 1)))
      (else (call_indirect (result i32) (memory.size))))) (func) (start 3))"""
)
ORIGINALS = [*(path.read_bytes() for path in MODULES), RICH, RICH, RICH, NOTHING]


@st.composite
def mutants(draw: st.DrawFn) -> bytes:
    """Bytes changed, a part cut out, doubled, or brought in from another module, or the end cut off."""
    data = bytearray(draw(st.sampled_from(ORIGINALS)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(8, len(data) - 1)) if len(data) > 9 else 0
        kind = draw(st.sampled_from(["change", "change", "change", "cut", "double", "splice", "truncate"]))
        length = draw(st.integers(1, 40))
        if kind == "change":
            data[at : at + 1] = bytes((draw(st.integers(0, 255)),))
        elif kind == "cut":
            del data[at : at + length]
        elif kind == "double":
            data[at:at] = data[at : at + length]
        elif kind == "splice":
            other = draw(st.sampled_from(ORIGINALS))
            start = draw(st.integers(0, len(other) - 1))
            data[at : at + length] = other[start : start + length]
        else:
            del data[at:]
    return bytes(data)


@cache
def engine(restorable: bool) -> wasmtime.Engine:
    return engine_for(Order(b"", "wasm3", LIMIT, restorable))


def check(module: bytes, name: EngineName, restorable: bool) -> None:
    verdict = judge(Order(module, name, LIMIT, restorable), engine(restorable))
    if isinstance(verdict, Rejected):
        assert verdict.rule != "rewrite", verdict
        assert verdict.offset is None or 0 <= verdict.offset <= len(module)
        return
    assert isinstance(verdict, Admitted)
    if name == "wasm3":
        wasmtime.Module.validate(engine(restorable), verdict.code)
        layout = read(verdict.code)
        assert layout.memory is None or (layout.memory.most or 0) <= LIMIT >> 16
        assert layout.imports[-1].name == "usegas"


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(mutants(), st.booleans())
def test_a_mutant_is_admitted_or_rejected(module: bytes, restorable: bool) -> None:
    check(module, "wasm3", restorable)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(mutants())
def test_a_mutant_is_compiled_or_rejected(module: bytes) -> None:
    check(module, "wasmtime", restorable=False)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_rejected_or_an_empty_module(noise: bytes) -> None:
    check(noise, "wasm3", restorable=True)
    check(b"\0asm\1\0\0\0" + noise, "wasm3", restorable=True)
