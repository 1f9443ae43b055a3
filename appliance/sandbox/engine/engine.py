"""The interface that a guest is run through, whatever runs it. Pure: no engine is imported before it is chosen."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, cast

from appliance.errors import HandlerError
from appliance.sandbox.admission.verdict import Admitted
from appliance.sandbox.messages import GuestFault

Function = Callable[..., Any]
"""An exported function; raises GuestFailedError where the guest traps. Integers come and go signed."""


class GuestFailedError(HandlerError):
    """The guest's own failure."""

    def __init__(self, kind: GuestFault, message: str, backtrace: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.kind = kind
        self.backtrace = backtrace
        """The guest's functions, innermost first, by ``frame_line``; empty where the engine knows none."""


@dataclass(frozen=True, slots=True)
class HostFunction:
    """A function a guest may import."""

    module: str
    name: str
    signature: str
    """wasm3's notation, result first: ``i(iI)`` is (i32, i64) -> i32. All integers arrive signed."""
    call: Callable[..., int | None]


class Instance(Protocol):
    """One loaded module. :meth:`link` once, :meth:`allow`, :meth:`find`, call what was found."""

    def link(self, functions: Iterable[HostFunction]) -> None:
        """Give the module what it imports; GuestFailedError ``link`` names the import that nothing provides."""

    def allow(self, gas: int) -> None:
        """Let the guest run so many instructions from now on, then its call fails with ``gas``. At first: none."""

    def gas_used(self) -> int:
        """Instructions since the last :meth:`allow`, those of a function or a round of a loop when it begins."""

    def find(self, name: str, signature: str = "i()") -> Function | None:
        """The exported function of that name, None where there is none; the start function runs at the first.

        GuestFailedError ``link`` where it has another signature, and whatever the start function fails with.
        """

    def memory(self) -> memoryview:
        """The guest's linear memory, writable. It dangles after the next call into the guest: never keep it."""

    def reset(self) -> None:
        """As freshly loaded and linked: memory, globals, the memory's size. Gas goes on.

        Functions that were found before are of no use any more; the next :meth:`find` runs the start function again.
        RuntimeError where the module was not admitted as restorable.
        """


class Engine(Protocol):
    """What a module in ``engine/`` is."""

    LOADS_CODE: bool
    """It makes memory executable while it loads a module, and must be allowed to."""

    def prepare(self, memory_bytes: int) -> None:
        """Open and ask for all that it needs in this process; a locked down one can open nothing."""

    def load(self, admitted: Admitted, memory_bytes: int) -> Instance:
        """Load what was admitted for this engine and so much memory; no code of it runs. GuestFailedError ``load``."""


_MODULES = {
    "wasm3": "appliance.sandbox.engine.wasm3_engine",
    "wasmtime": "appliance.sandbox.engine.wasmtime_engine",
}


def open_engine(name: str) -> Engine:
    """The engine of that name. Imported here, so that a worker has in memory only the one it uses."""
    return cast("Engine", import_module(_MODULES[name]))


def imported(admitted: Admitted, functions: Iterable[HostFunction]) -> list[HostFunction]:
    """Those of ``functions`` that a module imports; GuestFailedError ``link`` names the one that is not there."""
    provided = {(function.module, function.name): function for function in functions}
    found = {}
    for module, name, signature in admitted.imports:
        function = provided.get((module, name))
        if function is None:
            raise GuestFailedError("link", f"it imports {module}.{name}, which its ABI does not have")
        if function.signature != signature:
            raise GuestFailedError("link", f"it imports {module}.{name} as {signature}; it is {function.signature}")
        found[module, name] = function
    return list(found.values())


def exported(admitted: Admitted, name: str, signature: str) -> bool:
    """Whether a module exports such a function; GuestFailedError ``link`` where it has another signature."""
    found = admitted.functions.get(name)
    if found not in (None, signature):
        raise GuestFailedError("link", f"its export {name} is {found}; it must be {signature}")
    return found is not None
