"""What admission is asked, and what it answers."""

from typing import Annotated

import msgspec

from appliance.manifest import EngineName

ADMISSION_VERSION = 1
"""Goes up with every change of what is admitted or of what a module becomes: verdicts on disk are then made anew."""

START_NAME = "appliance:start"
"""Export of wasm3's modules, ``v()``: the start function, which the engine calls. wasm3 could run it only once."""
GAS_NAME = "appliance:gas"
"""Export of wasm3's modules: what is left of the batch of gas that the module has taken from the host."""
PAGES_NAME = "appliance:pages"
"""Export of restorable modules: the memory's size in pages, which is virtual."""
MEMORY_NAME = "appliance:memory"
"""Export of wasmtime's modules: the memory, which wasm3 gives whether it is exported or not."""


MAX_RULE, MAX_MESSAGE = 40, 500
"""Characters of what is said of a refusal."""


class Order(msgspec.Struct, frozen=True):
    """A module to judge, and for what."""

    module: bytes
    engine: EngineName
    memory_bytes: int
    """What its linear memory may grow to."""
    restorable: bool = False
    """Its state between two calls must be possible to save and to restore from outside (wasm3 alone)."""


class Admitted(msgspec.Struct, frozen=True, tag="admitted"):
    """The module may run."""

    digest: str
    """SHA-256 of the module as it came, in hex."""
    code: bytes
    """What the engine is given: for wasm3 the rewritten module, for wasmtime compiled code (``Module.deserialize``)."""
    imports: list[tuple[str, str, str]]
    """Module, name and signature of each function it imports, in its order."""
    functions: dict[str, str]
    """Functions of its own that it exports -> signature."""
    globals: list[str]
    """Names of the exports that hold its state, beside the memory; empty unless it was to be restorable."""
    memory_pages: int
    """Of 64 KiB, at the start; 0 where it has no memory."""


class Rejected(msgspec.Struct, frozen=True, tag="rejected"):
    """The module may not run."""

    rule: Annotated[str, msgspec.Meta(max_length=MAX_RULE)]
    message: Annotated[str, msgspec.Meta(max_length=MAX_MESSAGE)]
    """One sentence, for its author."""
    offset: int | None = None
    """In the module's file, where the fault is at one place."""


Verdict = Admitted | Rejected
