"""wasmtime: modules compiled at admission, run as machine code. For guests that compute much.

It is slower than wasm3 to call and to be called from (microseconds), and many times faster in between. The compiled
code is trusted as the module's rewriting is: both come from admission. It is loaded in a process that is locked down
but for that (:mod:`appliance.sandbox.lockdown`). Traps are named as wasm3 names them.
"""

import ctypes
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any

import wasmtime

from appliance.sandbox.admission.verdict import MEMORY_NAME, START_NAME, Admitted
from appliance.sandbox.engine.backtrace import frame_line
from appliance.sandbox.engine.engine import (
    Function,
    GuestFailedError,
    HostFunction,
    exported,
    imported,
)
from appliance.sandbox.messages import MAX_BACKTRACE, GuestFault
from appliance.sandbox.wasmtime_config import make_config

LOADS_CODE = True
MAX_TABLE_ELEMENTS = 1 << 20
_TYPES = {
    "i": wasmtime.ValType.i32,
    "I": wasmtime.ValType.i64,
    "f": wasmtime.ValType.f32,
    "F": wasmtime.ValType.f64,
}
_TRAPS = {
    wasmtime.TrapCode.STACK_OVERFLOW: "stack overflow",
    wasmtime.TrapCode.MEMORY_OUT_OF_BOUNDS: "out of bounds memory access",
    wasmtime.TrapCode.TABLE_OUT_OF_BOUNDS: "undefined element",
    wasmtime.TrapCode.INDIRECT_CALL_TO_NULL: "null table element",
    wasmtime.TrapCode.BAD_SIGNATURE: "indirect call type mismatch",
    wasmtime.TrapCode.INTEGER_OVERFLOW: "integer overflow",
    wasmtime.TrapCode.INTEGER_DIVISION_BY_ZERO: "integer divide by zero",
    wasmtime.TrapCode.BAD_CONVERSION_TO_INTEGER: "invalid conversion to integer",
    wasmtime.TrapCode.UNREACHABLE: "unreachable executed",
    wasmtime.TrapCode.OUT_OF_FUEL: "Out of gas",
}
_NO_MEMORY = memoryview(bytearray())
_WRITABLE = 0x200  # PyBUF_WRITE
_view_of = ctypes.pythonapi.PyMemoryView_FromMemory
_view_of.restype = ctypes.py_object
_view_of.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)


@cache
def _engine(memory_bytes: int) -> wasmtime.Engine:
    return wasmtime.Engine(make_config(memory_bytes))


def prepare(memory_bytes: int) -> None:
    """An engine asks what standard error is, and for random numbers."""
    _engine(memory_bytes)


def load(admitted: Admitted, memory_bytes: int) -> "WasmtimeInstance":
    """As :class:`Engine` says."""
    return WasmtimeInstance(admitted, memory_bytes)


class WasmtimeInstance:
    """One loaded module; as :class:`Instance` says. What wasmtime calls an instance is made at the first need."""

    def __init__(self, admitted: Admitted, memory_bytes: int) -> None:
        """Map the compiled code; none of it runs. GuestFailedError ``load``."""
        self._admitted = admitted
        self._memory_bytes = memory_bytes
        self._engine = _engine(memory_bytes)
        try:
            self._module = wasmtime.Module.deserialize(self._engine, admitted.code)
        except wasmtime.WasmtimeError as error:
            raise GuestFailedError("load", f"the module cannot be loaded: {error}") from error
        self._linked: wasmtime.InstancePre | None = None
        self._store: wasmtime.Store | None = None
        self._instance: wasmtime.Instance | None = None
        self._started = False
        self._gas = self._left = 0

    def link(self, functions: Iterable[HostFunction]) -> None:
        linker = wasmtime.Linker(self._engine)
        for function in imported(self._admitted, functions):
            result, _, parameters = function.signature.rstrip(")").partition("(")
            results = [] if result == "v" else [_TYPES[result]()]
            type = wasmtime.FuncType([_TYPES[each]() for each in parameters], results)
            linker.define_func(function.module, function.name, type, function.call)
        self._linked = linker.instantiate_pre(self._module)

    def allow(self, gas: int) -> None:
        self._gas = self._left = gas
        if self._store:
            self._store.set_fuel(gas)

    def gas_used(self) -> int:
        return self._gas - (self._store.get_fuel() if self._store else self._left)

    def find(self, name: str, signature: str = "i()") -> Function | None:
        if not self._started and START_NAME in self._admitted.functions:
            self._function(START_NAME)()
        self._started = True
        return self._function(name) if exported(self._admitted, name, signature) else None

    def _function(self, name: str) -> Function:
        store, instance = self._instantiated()
        function = instance.exports(store)[name]
        assert isinstance(function, wasmtime.Func)
        return partial(_guarded, function, store)

    def memory(self) -> memoryview:
        store, instance = self._instantiated()
        memory = instance.exports(store).get(MEMORY_NAME)
        if not isinstance(memory, wasmtime.Memory):
            return _NO_MEMORY
        size = memory.data_len(store)
        view: memoryview = _view_of(ctypes.cast(memory.data_ptr(store), ctypes.c_void_p), size, _WRITABLE)
        return view

    def reset(self) -> None:
        self._left = self._gas - self.gas_used()
        if self._store:
            self._store.close()  # now: there is no room for the memory of two
        self._store = self._instance = None
        self._started = False

    def _instantiated(self) -> tuple[wasmtime.Store, wasmtime.Instance]:
        """With memory, globals and table as the module says. No code of the guest's runs."""
        if self._linked is None:
            raise RuntimeError("link before find: the start function may call what is not linked")
        if self._store is None or self._instance is None:
            self._store = wasmtime.Store(self._engine)
            self._store.set_limits(self._memory_bytes, MAX_TABLE_ELEMENTS, instances=1, tables=1, memories=1)
            self._store.set_fuel(self._left)
            self._instance = self._instantiate(self._linked, self._store)
        return self._store, self._instance

    def _instantiate(self, linked: wasmtime.InstancePre, store: wasmtime.Store) -> wasmtime.Instance:
        try:
            return linked.instantiate(store)
        except wasmtime.Trap as trap:
            raise GuestFailedError("load", f"a segment does not fit: {_name(trap)}") from trap
        except wasmtime.WasmtimeError as error:
            raise GuestFailedError("memory", f"there is no memory for the module: {error}") from error


def _guarded(function: Callable[..., Any], *arguments: object) -> Any:
    """Call with wasmtime's traps made ours; what a host function raises passes unchanged."""
    try:
        return function(*arguments)
    except wasmtime.Trap as trap:
        kind: GuestFault = "gas" if trap.trap_code == wasmtime.TrapCode.OUT_OF_FUEL else "trap"
        raise GuestFailedError(kind, _name(trap), _backtrace(trap)) from trap


def _name(trap: wasmtime.Trap) -> str:
    code = trap.trap_code
    return _TRAPS.get(code, trap.message) if code else trap.message


def _backtrace(trap: wasmtime.Trap) -> tuple[str, ...]:
    return tuple(
        frame_line(depth, frame.module_offset, frame.func_name or f"{frame.func_index}:")
        for depth, frame in enumerate(trap.frames[:MAX_BACKTRACE])
    )
