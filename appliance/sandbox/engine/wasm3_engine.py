"""wasm3, wrapped so that it can only be used in the order it survives: load, link, find, call.

Runs in a worker process alone: wasm3 can be crashed by a module (it validates nothing), holds the GIL while a guest
runs, and frees no instance.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import wasm3

from appliance.sandbox.engine.engine import Function, GuestFailedError, HostFunction
from appliance.sandbox.messages import GuestFault
from appliance.sandbox.module import MemoryLimitError, ModuleError, prepare

STACK_BYTES = 64 << 10
"""Of the guest's own stack. With 2 MB and more, plain recursion overran the C stack."""
_TYPES = {"i": 1, "I": 2, "f": 3, "F": 4}
"""wasm3's numbers of the types."""
_TRAP = "[trap] "
_NO_MEMORY_LEFT = "memory allocation failed"
_NO_MEMORY = memoryview(b"")


def load(module: bytes, memory_bytes: int) -> "Wasm3Instance":
    """As :class:`Engine` says."""
    return Wasm3Instance(module, memory_bytes)


class Wasm3Instance:
    """One loaded module. Construct, :meth:`link` once, :meth:`find`, call what was found."""

    def __init__(self, module: bytes, memory_bytes: int) -> None:
        """Parse and load; GuestFailedError ``load`` or ``memory`` where the module is damaged or too large."""
        try:
            self._prepared = prepare(module, memory_bytes)
        except MemoryLimitError as error:
            raise GuestFailedError("memory", f"the module cannot be loaded: {error}") from error
        except ModuleError as error:
            raise GuestFailedError("load", f"the module cannot be loaded: {error}") from error
        environment = wasm3.Environment()
        self._runtime = environment.new_runtime(STACK_BYTES)
        try:
            self._module = environment.parse_module(self._prepared.code)
            self._runtime.load(self._module)
        except RuntimeError as error:
            raise GuestFailedError(_kind_of(str(error)), f"the module cannot be loaded: {error}") from error
        self._linked = False

    def link(self, functions: Iterable[HostFunction]) -> None:
        """Give the module what it imports; GuestFailedError ``link`` names the import that nothing provides."""
        provided = {(function.module, function.name): function for function in functions}
        for module, name in self._prepared.imports:
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

    def find(self, name: str, signature: str = "i()") -> Function | None:
        """The exported function of that name, None where there is none. The start function runs at the first."""
        if not self._linked:
            raise RuntimeError("link before find: the start function may call what is not linked")
        if name not in self._prepared.functions:
            return None
        function = _guarded(self._runtime.find_function, name)
        result, _, parameters = signature.rstrip(")").partition("(")
        results = () if result == "v" else (_TYPES[result],)
        if function.ret_types != results or function.arg_types != tuple(_TYPES[each] for each in parameters):
            raise GuestFailedError("link", f"its export {name} is not of type {signature}")
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
        raise GuestFailedError(_kind_of(text), text.removeprefix(_TRAP)) from error


def _kind_of(text: str) -> GuestFault:
    if text.startswith(_TRAP):
        return "trap"
    return "memory" if text.startswith(_NO_MEMORY_LEFT) else "load"
