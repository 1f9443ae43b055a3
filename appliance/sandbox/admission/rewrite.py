"""The module that an engine is given, made of the one that came. Pure.

- Custom sections are gone, and so is the count of data. The memory's maximum is declared and within the limit.
- One name section is new: ``N:name`` for each function, N its index in the module as it came. Backtraces then name
  functions. wasm3 looks functions up among those names, too, and before exports: none of them can be the name of an
  entry point, because those begin with a letter or an underscore.
- The start function is an export of ours, for the engine to call: with gas, at a time of its own, and again after a
  reset. So is the memory, for wasmtime.
- For wasm3, gas is charged (:mod:`.metering`), and memory grows by a function of ours (:mod:`.growing`).
- Where its state must be restorable, each mutable global is exported under a name of ours, and the memory's size is
  virtual: a restored instance has the memory's size as it was when it was saved, although memory never shrinks. Who
  restores it sets the globals, writes the memory of that time, and must zero all the rest.
"""

from appliance.sandbox.admission import binary
from appliance.sandbox.admission.binary import (
    PAGE_BYTES,
    PREAMBLE,
    BrokenRuleError,
    encode_name,
    encode_section,
    encode_sized,
    encode_u32,
    encode_vector,
)
from appliance.sandbox.admission.code import END, I32_CONST
from appliance.sandbox.admission.growing import grow_body
from appliance.sandbox.admission.layout import MAX_SHOWN_NAME, Layout, Memory
from appliance.sandbox.admission.metering import Additions, metered
from appliance.sandbox.admission.verdict import GAS_NAME, MEMORY_NAME, PAGES_NAME, START_NAME

RESERVED = "appliance:"
"""How names that are added here begin: no module may export such."""
METERING, USEGAS = "metering", "usegas"
"""What wasm3 provides by itself. A guest that could import it would give itself gas, by using a negative amount."""
GLOBAL_NAME = RESERVED + "global:{}"
_I32, _MUTABLE = 0x7F, 1
_TAKE_TYPE, _REFILL_TYPE, _GROW_TYPE = b"\x60\1\x7f\0", b"\x60\0\0", b"\x60\1\x7f\1\x7f"
_FUNCTION_NAMES = 1


def limited(layout: Layout, most_pages: int) -> bytes:
    """The module with its memory limited and its names made ours; otherwise as it was. BrokenRuleError ``memory``."""
    sections = {kind: layout.data[start:end] for kind, (start, end) in layout.sections.items()}
    sections.pop(binary.DATA_COUNT, None)
    sections.pop(binary.START, None)
    exports = []
    if layout.memory:
        sections[binary.MEMORY] = _memory(layout.memory, most_pages)
        exports.append(_export(MEMORY_NAME, binary.MEMORY_KIND, 0))
    if layout.start is not None:
        exports.append(_export(START_NAME, binary.FUNCTION_KIND, layout.start))
    if exports:
        sections[binary.EXPORT] = _extended(layout, binary.EXPORT, exports)
    return _joined(sections, _names(layout, moved=0))


def instrumented(layout: Layout, most_pages: int, *, restorable: bool) -> tuple[bytes, list[str]]:
    """The module for wasm3, and the names of the exports that hold its state. BrokenRuleError ``memory`` or as
    :func:`.bodies.checked`."""
    memory = layout.memory
    own = len(layout.imports) + 1 + len(layout.functions)
    additions = Additions(
        usegas=len(layout.imports),
        gas=len(layout.globals),
        refill=own,
        grow=own + 1,
        pages=len(layout.globals) + 1 if restorable and memory else None,
    )
    state = _state(layout, additions) if restorable else {}
    sections = {kind: layout.data[start:end] for kind, (start, end) in layout.sections.items()}
    sections.pop(binary.DATA_COUNT, None)
    first_type = len(layout.types)
    sections[binary.TYPE] = _extended(layout, binary.TYPE, [_TAKE_TYPE, _REFILL_TYPE, _GROW_TYPE])
    usegas = encode_name(METERING) + encode_name(USEGAS) + bytes((binary.FUNCTION_KIND,)) + encode_u32(first_type)
    sections[binary.IMPORT] = _extended(layout, binary.IMPORT, [usegas])
    sections.pop(binary.START, None)
    if layout.elements:
        sections[binary.ELEMENT] = _elements(layout, additions)
    functions = [encode_u32(first_type + 1)]
    variables = [_variable(0)]
    bodies = [*(metered(layout, body, additions) for body in layout.bodies), additions.refill_body()]
    if memory:
        sections[binary.MEMORY] = _memory(memory, most_pages)
        functions.append(encode_u32(first_type + 2))
        bodies.append(grow_body(additions, _most(memory, most_pages)))
        if additions.pages is not None:
            variables.append(_variable(memory.pages))
    sections[binary.FUNCTION] = _extended(layout, binary.FUNCTION, functions)
    sections[binary.GLOBAL] = _extended(layout, binary.GLOBAL, variables)
    sections[binary.EXPORT] = _exports(layout, additions, state)
    sections[binary.CODE] = encode_vector([encode_sized(body) for body in bodies])
    return _joined(sections, _names(layout, moved=1)), list(state)


def _variable(value: int) -> bytes:
    """A global i32."""
    return bytes((_I32, _MUTABLE, I32_CONST)) + binary.encode_signed(value) + bytes((END,))


def _memory(memory: Memory, limit: int) -> bytes:
    """The section, with its maximum at most ``limit`` pages; BrokenRuleError ``memory`` where it starts with more."""
    if memory.pages > limit:
        size, most = memory.pages * PAGE_BYTES, limit * PAGE_BYTES
        message = f"it starts with {size} bytes of memory, over its limit of {most}"
        raise BrokenRuleError("memory", message, memory.at)
    most = max(1, _most(memory, limit))  # wasm3 takes a maximum of 0 for none at all
    return b"\1\1" + encode_u32(memory.pages) + encode_u32(most)


def _most(memory: Memory, limit: int) -> int:
    return limit if memory.most is None else min(memory.most, limit)


def _state(layout: Layout, additions: Additions) -> dict[str, int]:
    """Name -> index of each global that is a part of the state."""
    state = {GLOBAL_NAME.format(index): index for index, mutable in enumerate(layout.globals) if mutable}
    if additions.pages is not None:
        state[PAGES_NAME] = additions.pages
    return state


def _extended(layout: Layout, kind: int, items: list[bytes]) -> bytes:
    """A section with more items at its end."""
    start, end = layout.sections.get(kind, (0, 0))
    section = binary.Reader(layout.data, start, end)
    count = section.u32() if section.left() else 0
    return encode_u32(count + len(items)) + section.take(section.left()) + b"".join(items)


def _elements(layout: Layout, additions: Additions) -> bytes:
    return encode_vector(
        [
            bytes((0, I32_CONST))
            + binary.encode_signed(segment.offset)
            + bytes((END,))
            + encode_vector([encode_u32(additions.moved(function)) for function in segment.functions])
            for segment in layout.elements
        ]
    )


def _exports(layout: Layout, additions: Additions, state: dict[str, int]) -> bytes:
    """Those of the module, then ours: wasm3 knows a global by the last of its names alone."""
    items = []
    for export in layout.exports:
        index = additions.moved(export.index) if export.kind == binary.FUNCTION_KIND else export.index
        items.append(_export(export.name, export.kind, index))
    if layout.start is not None:
        items.append(_export(START_NAME, binary.FUNCTION_KIND, additions.moved(layout.start)))
    items += [_export(name, binary.GLOBAL_KIND, index) for name, index in ({GAS_NAME: additions.gas} | state).items()]
    return encode_vector(items)


def _export(name: str, kind: int, index: int) -> bytes:
    return encode_name(name) + bytes((kind,)) + encode_u32(index)


def _names(layout: Layout, moved: int) -> bytes:
    """The new name section: all functions of the module's own, by index in the rewritten one.

    One that has no name but is exported has the name of its export: of a stripped module there is nothing else.
    """
    imported = len(layout.imports)
    exported = {export.index: export.name for export in layout.exports if export.kind == binary.FUNCTION_KIND}
    known = exported | layout.names
    names = [
        encode_u32(index + moved) + encode_name(f"{index}:{_printable(known.get(index, ''))}")
        for index in range(imported, imported + len(layout.functions))
    ]
    return encode_name("name") + bytes((_FUNCTION_NAMES,)) + encode_sized(encode_vector(names))


def _printable(name: str) -> str:
    return "".join(letter if " " <= letter <= "~" else "?" for letter in name)[:MAX_SHOWN_NAME]


def _joined(sections: dict[int, bytes], names: bytes) -> bytes:
    parts = [encode_section(kind, sections[kind]) for kind in binary.ORDER if kind in sections]
    return b"".join((PREAMBLE, *parts, encode_section(binary.CUSTOM, names)))
