"""wasm3, wrapped so that it can only be used in the order it survives: load, link, find, call.

Runs in a worker process alone: wasm3 can be crashed by a module (it validates nothing), holds the GIL while a guest
runs, and frees no instance.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import wasm3

from appliance.errors import HandlerError
from appliance.sandbox.admission.binary import PAGE_BYTES, BrokenRuleError
from appliance.sandbox.admission.layout import read
from appliance.sandbox.admission.rewrite import limited
from appliance.sandbox.messages import GuestFault

STACK_BYTES = 64 << 10
"""Of the guest's own stack. With 2 MB and more, plain recursion overran the C stack."""
_I32 = 1  # wasm3's c_m3Type_i32
_TRAP = "[trap] "
_NO_MEMORY = memoryview(b"")

Function = Callable[[], int]
"""An exported function of type () -> i32; raises GuestFailedError."""


class GuestFailedError(HandlerError):
    """The guest's own failure."""

    def __init__(self, kind: GuestFault, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class HostFunction:
    """A function a guest may import."""

    module: str
    name: str
    signature: str
    """wasm3's notation, result first: ``i(iI)`` is (i32, i64) -> i32. All integers arrive signed."""
    call: Callable[..., int | None]


class Instance:
    """One loaded module. Construct, :meth:`link` once, :meth:`find`, call what was found."""

    def __init__(self, module: bytes, memory_bytes: int) -> None:
        """Parse and load; GuestFailedError ``load`` or ``memory`` where the module is damaged or too large."""
        try:
            layout = read(module)
            code = limited(layout, memory_bytes // PAGE_BYTES)
        except BrokenRuleError as error:
            kind: GuestFault = "memory" if error.rule == "memory" else "load"
            raise GuestFailedError(kind, f"the module cannot be loaded: {error}") from error
        self._imports = [(item.module, item.name) for item in layout.imports]
        self._functions = layout.exported_functions()
        environment = wasm3.Environment()
        self._runtime = environment.new_runtime(STACK_BYTES)
        try:
            self._module = environment.parse_module(code)
            self._runtime.load(self._module)
        except RuntimeError as error:
            raise GuestFailedError("load", f"the module cannot be loaded: {error}") from error
        self._linked = False

    def link(self, functions: Iterable[HostFunction]) -> None:
        """Give the module what it imports; GuestFailedError ``link`` names the import that nothing provides."""
        provided = {(function.module, function.name): function for function in functions}
        for module, name in self._imports:
            function = provided.get((module, name))
            if function is None:
                raise GuestFailedError("link", f"it imports {module}.{name}, which its ABI does not have")
            try:
                self._module.link_function(module, name, function.signature, function.call)
            except RuntimeError as error:
                raise GuestFailedError(
                    "link", f"it imports {module}.{name} with another type than {function.signature}: {error}"
                ) from error
        self._linked = True

    def find(self, name: str) -> Function | None:
        """The exported function of that name, None where there is none. The start function runs at the first."""
        if not self._linked:
            raise RuntimeError("link before find: the start function may call what is not linked")
        if name not in self._functions:
            return None
        function = _guarded(self._runtime.find_function, name)
        if function.num_args or function.ret_types != (_I32,):
            raise GuestFailedError("link", f"its export {name} is not of type () -> i32")
        return partial(_guarded, function)

    def memory(self) -> memoryview:
        """The guest's linear memory, writable. It dangles after the next call into the guest: never keep it."""
        view: memoryview | None = self._runtime.get_memory(0)
        return _NO_MEMORY if view is None else view


def _guarded(function: Callable[..., Any], *arguments: object) -> Any:
    """Call with wasm3's errors made ours; what a host function raises passes unchanged."""
    try:
        return function(*arguments)
    except RuntimeError as error:
        text = str(error)
        raise GuestFailedError("trap" if text.startswith(_TRAP) else "load", text.removeprefix(_TRAP)) from error
