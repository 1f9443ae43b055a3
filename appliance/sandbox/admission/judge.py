"""The whole of admission, in the order that it is safe in: bounds, rules, validator, code, rewriting.

It runs wasmtime's parser and compiler on hostile bytes, so only in a process that may die of it.
"""

import hashlib
import re
from collections import deque

import wasmtime

from appliance.sandbox.admission import limits, rules
from appliance.sandbox.admission.binary import PAGE_BYTES, PREAMBLE, BrokenRuleError
from appliance.sandbox.admission.bodies import checked
from appliance.sandbox.admission.layout import Layout, read
from appliance.sandbox.admission.rewrite import instrumented, limited
from appliance.sandbox.admission.verdict import MAX_MESSAGE, START_NAME, Admitted, Order, Rejected, Verdict
from appliance.sandbox.wasmtime_config import make_config

_OFFSET = re.compile(r"\(at offset 0x([0-9a-f]{1,8})\)")
_FEATURE = re.compile(r"enabled|disallowed|not supported|without the")
"""In what wasmtime says of a module that would be valid with more of WebAssembly."""


def engine_for(order: Order) -> wasmtime.Engine:
    """What :func:`judge` needs. It does not depend on the module, and is best made before a lockdown."""
    engine = wasmtime.Engine(make_config(order.memory_bytes))
    wasmtime.Module.validate(engine, PREAMBLE)  # whatever wasmtime opens or asks for with its first module
    return engine


def judge(order: Order, engine: wasmtime.Engine) -> Verdict:
    """Nothing but a verdict comes out for any bytes, unless wasmtime ends the process."""
    try:
        return _admit(order, engine)
    except BrokenRuleError as error:
        return Rejected(error.rule, str(error)[:MAX_MESSAGE], error.offset)


def _admit(order: Order, engine: wasmtime.Engine) -> Admitted:
    layout = read(order.module)
    rules.check(layout)
    _validate(engine, order.module)
    most = order.memory_bytes // PAGE_BYTES
    state: list[str] = []
    if order.engine == "wasm3":
        code, state = instrumented(layout, most, restorable=order.restorable)
        if len(code) > limits.MAX_REWRITTEN_BYTES:
            message = f"with its gas charged it has {len(code)} bytes, over the limit of {limits.MAX_REWRITTEN_BYTES}"
            raise BrokenRuleError("size", message)
        _validate_ours(engine, code)
    else:
        for body in layout.bodies:
            deque(checked(layout, body), maxlen=0)
        code = _compiled(engine, limited(layout, most))
    return Admitted(
        digest=hashlib.sha256(order.module).hexdigest(),
        code=code,
        imports=_imports(layout),
        functions=layout.exported_functions() | ({} if layout.start is None else {START_NAME: "v()"}),
        globals=state,
        memory_pages=layout.memory.pages if layout.memory else 0,
    )


def _imports(layout: Layout) -> list[tuple[str, str, str]]:
    return [(item.module, item.name, layout.types[item.type].signature) for item in layout.imports]


def _validate(engine: wasmtime.Engine, module: bytes) -> None:
    try:
        wasmtime.Module.validate(engine, module)
    except wasmtime.WasmtimeError as error:
        text = " ".join(str(error).split())
        place = _OFFSET.search(text)
        rule = "feature" if _FEATURE.search(text) else "invalid"
        raise BrokenRuleError(
            rule, f"it is not valid: {text[-MAX_MESSAGE // 2 :]}", int(place[1], 16) if place else None
        ) from error


def _validate_ours(engine: wasmtime.Engine, code: bytes) -> None:
    """wasm3 checks nothing, so a mistake of ours must not reach it either."""
    try:
        wasmtime.Module.validate(engine, code)
    except wasmtime.WasmtimeError as error:
        raise BrokenRuleError(
            "rewrite", f"a defect of the appliance: the rewritten module is not valid: {error}"
        ) from error


def _compiled(engine: wasmtime.Engine, code: bytes) -> bytes:
    try:
        return bytes(wasmtime.Module(engine, code).serialize())
    except wasmtime.WasmtimeError as error:
        raise BrokenRuleError("compile", f"wasmtime cannot compile it: {error}") from error
