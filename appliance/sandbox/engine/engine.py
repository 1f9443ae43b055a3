"""The interface that a guest is run through, whatever runs it. Pure: no engine is imported before it is chosen."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, Protocol, cast

from appliance.errors import HandlerError
from appliance.sandbox.messages import GuestFault

EngineName = Literal["wasm3", "wasmtime"]

Function = Callable[..., Any]
"""An exported function; raises GuestFailedError where the guest traps. Integers come and go signed."""


class GuestFailedError(HandlerError):
    """The guest's own failure."""

    def __init__(self, kind: GuestFault, message: str, backtrace: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.kind = kind
        self.backtrace = backtrace
        """The guest's functions, innermost first; few and short."""


@dataclass(frozen=True, slots=True)
class HostFunction:
    """A function a guest may import."""

    module: str
    name: str
    signature: str
    """wasm3's notation, result first: ``i(iI)`` is (i32, i64) -> i32. All integers arrive signed."""
    call: Callable[..., int | None]


class Instance(Protocol):
    """One loaded module. :meth:`link` once, :meth:`find`, call what was found."""

    def link(self, functions: Iterable[HostFunction]) -> None:
        """Give the module what it imports; GuestFailedError ``link`` names the import that nothing provides."""

    def find(self, name: str, signature: str = "i()") -> Function | None:
        """The exported function of that name, None where there is none; the start function runs at the first.

        GuestFailedError ``link`` where it has another signature, and whatever the start function fails with.
        """

    def memory(self) -> memoryview:
        """The guest's linear memory, writable. It dangles after the next call into the guest: never keep it."""

    def reset(self) -> None:
        """As after :meth:`link`: memory and globals begin anew. What was found before must be found again."""


class Engine(Protocol):
    """What a module in ``engine/`` is."""

    def load(self, module: bytes, memory_bytes: int) -> Instance:
        """Load a module; GuestFailedError ``load`` or ``memory`` where it is damaged or too large."""


_MODULES = {"wasm3": "appliance.sandbox.engine.wasm3_engine"}


def open_engine(name: str) -> Engine:
    """The engine of that name. Imported here, so that a worker has in memory only the one it uses."""
    return cast("Engine", import_module(_MODULES[name]))
