"""wasm3, wrapped so that it can only be used in the order it survives: load, link, find, call.

Runs in a worker process alone: wasm3 can be crashed by a module (it validates nothing), holds the GIL while a guest
runs, and frees no instance. So one instance serves all frames, and is put back in its first state where each frame
needs a fresh one.
"""

import ctypes
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import wasm3

from appliance.sandbox.admission.verdict import GAS_NAME, PAGES_NAME, START_NAME, Admitted
from appliance.sandbox.engine.backtrace import PrintedBacktrace
from appliance.sandbox.engine.engine import (
    Function,
    GuestFailedError,
    HostFunction,
    exported,
    imported,
)
from appliance.sandbox.messages import GuestFault

LOADS_CODE = False
STACK_BYTES = 64 << 10
"""Of the guest's own stack. With 2 MB and more, plain recursion overran the C stack."""
GAS_UNIT = 10_000
"""Gas in wasm3's unit of it."""
PAGE_BYTES = 1 << 16
_TRAP = "[trap] "
_NO_MEMORY_LEFT = "memory allocation failed"
_OUT_OF_GAS = "Out of gas"
_NO_MEMORY = memoryview(bytearray())
_ZEROS = bytes(PAGE_BYTES)
_MOST_I32 = (1 << 31) - 1
_HALF, _MASK = 1 << 63, (1 << 64) - 1

_printed: list[PrintedBacktrace] = []
"""What wasm3 prints for a trap, once :func:`prepare` was called."""


def prepare(_: int) -> None:
    """Catch the backtraces, which wasm3 gives to standard error alone."""
    _printed.append(PrintedBacktrace())


def load(admitted: Admitted, memory_bytes: int) -> "Wasm3Instance":
    """As :class:`Engine` says. The memory's limit is written in the module."""
    del memory_bytes
    return Wasm3Instance(admitted)


class Wasm3Instance:
    """One loaded module; as :class:`Instance` says."""

    def __init__(self, admitted: Admitted) -> None:
        """Parse and load; no code of the guest's runs. GuestFailedError ``load``."""
        self._admitted = admitted
        environment = wasm3.Environment()
        self._runtime = environment.new_runtime(STACK_BYTES)
        try:
            self._module = environment.parse_module(admitted.code)
            self._runtime.load(self._module)
        except RuntimeError as error:
            raise GuestFailedError("load", f"the module cannot be loaded: {error}") from error
        self._found: dict[str, Function] = {}
        self._linked = self._started = False
        self._gas = 0
        self._view = _NO_MEMORY
        self._globals = {name: self._module.get_global(name) for name in admitted.globals}
        self._image = _without_zeros(self.memory()) if self._globals else b""

    def link(self, functions: Iterable[HostFunction]) -> None:
        for function in imported(self._admitted, functions):
            try:
                self._module.link_function(function.module, function.name, function.signature, _signed(function))
            except RuntimeError as error:
                raise GuestFailedError(
                    "link", f"{function.module}.{function.name} cannot be linked: {error}"
                ) from error
        self._linked = True

    def allow(self, gas: int) -> None:
        self._gas = gas
        self._module.gasLimit = (gas + 0.5) / GAS_UNIT  # it is cut to an integer
        self._module.set_global(GAS_NAME, 0)  # what is left from the frame before is not this one's

    def gas_used(self) -> int:
        taken: float = self._module.gasUsed
        left: int = self._module.get_global(GAS_NAME)
        overdrawn = left > _MOST_I32  # below zero: an i32 comes unsigned
        return min(self._gas, round(taken * GAS_UNIT) - (0 if overdrawn else left))

    def find(self, name: str, signature: str = "i()") -> Function | None:
        if not self._linked:
            raise RuntimeError("link before find: the start function may call what is not linked")
        if not self._started and START_NAME in self._admitted.functions:
            self._function(START_NAME)()
        self._started = True
        return self._function(name) if exported(self._admitted, name, signature) else None

    def _function(self, name: str) -> Function:
        """Each is looked up once: wasm3's binding would leak a little every time."""
        if name not in self._found:
            self._found[name] = partial(self._guarded, self._guarded(self._runtime.find_function, name))
        return self._found[name]

    def memory(self) -> memoryview:
        if PAGES_NAME not in self._globals:
            return self._whole_memory()
        size = self._module.get_global(PAGES_NAME) * PAGE_BYTES
        if size > len(self._view):  # the only way to have moved: the memory itself never shrinks
            self._view = self._whole_memory()
        return self._view[:size]

    def _whole_memory(self) -> memoryview:
        """A view of it leaks 81 bytes."""
        view: memoryview | None = self._runtime.get_memory(0)
        return _NO_MEMORY if view is None else view

    def reset(self) -> None:
        if self._admitted.memory_pages and PAGES_NAME not in self._globals:
            raise RuntimeError("the module was not admitted as restorable")
        self.memory()  # so that the view is of the whole
        self._view[: len(self._image)] = self._image
        _zero(self._view[len(self._image) :])
        for name, value in self._globals.items():
            self._module.set_global(name, value)
        self._started = False

    def _guarded(self, function: Callable[..., Any], *arguments: object) -> Any:
        """Call with wasm3's errors made ours; what a host function raises passes unchanged."""
        try:
            return function(*arguments)
        except RuntimeError as error:
            if error.__traceback__ and error.__traceback__.tb_next:
                raise  # from Python code within
            text = str(error)
            if not text.startswith(_TRAP):
                why: GuestFault = "memory" if text.startswith(_NO_MEMORY_LEFT) else "load"
                raise GuestFailedError(why, f"wasm3 cannot run it: {text}") from error
            text = text.removeprefix(_TRAP)
            kind: GuestFault = "gas" if text.startswith(_OUT_OF_GAS) else "trap"
            raise GuestFailedError(kind, text, _printed[0].take() if _printed else ()) from error


def _signed(function: HostFunction) -> Callable[..., int | None]:
    """What wasm3 may call: its binding takes an i64 over 63 bits for an error, and goes on with it."""
    if not function.signature.startswith("I"):
        return function.call

    def call(*arguments: int) -> int:
        result = function.call(*arguments)
        assert result is not None
        return (result + _HALF & _MASK) - _HALF

    return call


def _without_zeros(view: memoryview) -> bytes:
    """A copy of memory without the pages at its end that are all zero."""
    end = len(view)
    while end and view[end - PAGE_BYTES : end] == _ZEROS:
        end -= PAGE_BYTES
    return bytes(view[:end])


def _zero(view: memoryview) -> None:
    """Clear memory; twice as fast as writing zeros from somewhere else."""
    if view:
        ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(view)), 0, len(view))
