"""A module's sections, read once into values and held to their limits on the way. Pure.

This comes before the validator, so it believes nothing; bodies of functions are left for after it.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from appliance.manifest import MAX_MODULE_BYTES
from appliance.sandbox.admission import binary, limits
from appliance.sandbox.admission.binary import BrokenRuleError, Reader
from appliance.sandbox.admission.code import END, F32_CONST, F64_CONST, I32_CONST, I64_CONST

LETTERS = {0x7F: "i", 0x7E: "I", 0x7D: "f", 0x7C: "F"}
"""Value types in wasm3's notation."""
_FOREIGN_TYPES = {0x7B: "a SIMD vector", 0x70: "a reference", 0x6F: "a reference"}

_TAGS = 13
_FUNCREF = 0x70
_FUNCTION_TYPE = 0x60
_KINDS = ("function", "table", "memory", "global", "tag")
_NAME_SECTION, _FUNCTION_NAMES = "name", 1
MAX_SHOWN_NAME = 64
"""Bytes of a function's name that are kept, for backtraces."""


@dataclass(frozen=True, slots=True)
class FunctionType:
    params: str
    results: str

    @property
    def signature(self) -> str:
        """wasm3's notation, results first: ``i(iI)``; several results as ``ii()``, which no ABI has."""
        return f"{self.results or 'v'}({self.params})"


@dataclass(frozen=True, slots=True)
class Import:
    module: str
    name: str
    type: int
    at: int


@dataclass(frozen=True, slots=True)
class Export:
    name: str
    kind: int
    index: int
    at: int


@dataclass(frozen=True, slots=True)
class Elements:
    """An active segment of the one table."""

    offset: int
    functions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Memory:
    pages: int
    most: int | None
    at: int


@dataclass(frozen=True, slots=True)
class Body:
    """Where a function's code lies: locals from ``start``, instructions from ``code`` to ``end``."""

    start: int
    code: int
    end: int


@dataclass(slots=True)
class Layout:
    """What the sections say. Filled by :func:`read`, and left alone afterwards."""

    data: bytes
    """The whole module."""
    types: list[FunctionType] = field(default_factory=list)
    imports: list[Import] = field(default_factory=list)
    functions: list[int] = field(default_factory=list)
    """By function of its own, the index of its type."""
    table: int = 0
    memory: Memory | None = None
    globals: list[bool] = field(default_factory=list)
    """Whether each is mutable."""
    exports: list[Export] = field(default_factory=list)
    start: int | None = None
    elements: list[Elements] = field(default_factory=list)
    bodies: list[Body] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    """Names of functions in its name section; empty where that is damaged."""
    sections: dict[int, tuple[int, int]] = field(default_factory=dict)
    """By kind, where a section's content starts and ends."""

    def type_of(self, function: int) -> FunctionType:
        """Of a function by its index, imports first; ``damaged`` where there is none."""
        own = function - len(self.imports)
        if own >= len(self.functions):
            raise BrokenRuleError("damaged", f"there is no function {function}")
        return self.types[self.functions[own] if own >= 0 else self.imports[function].type]

    def exported_functions(self) -> dict[str, str]:
        """Name -> signature of the functions of its own that it exports; wasm3 finds no others."""
        return {
            export.name: self.type_of(export.index).signature
            for export in self.exports
            if export.kind == binary.FUNCTION_KIND and export.index >= len(self.imports)
        }


def read(data: bytes) -> Layout:
    """BrokenRuleError where the sections are damaged, over a limit, or hold what no handler may have."""
    if len(data) > MAX_MODULE_BYTES:
        raise BrokenRuleError("size", f"it has {len(data)} bytes, over the limit of {MAX_MODULE_BYTES}")
    if not data.startswith(binary.PREAMBLE):
        raise BrokenRuleError("not-a-module", "it does not start like a WebAssembly module of version 1", 0)
    layout = Layout(data)
    reader = Reader(data, len(binary.PREAMBLE))
    place = 0
    while reader.left():
        at = reader.at
        kind = reader.byte()
        section = reader.part(reader.u32())
        if kind == binary.CUSTOM:
            _read_custom(layout, section)
            continue
        if kind == _TAGS:
            raise BrokenRuleError("feature", f"it has a section of exception tags at offset {at}", at)
        if kind not in binary.ORDER[place:]:
            raise BrokenRuleError(
                "damaged", f"the section of kind {kind} at offset {at} is unknown or out of order", at
            )
        place = binary.ORDER.index(kind) + 1
        layout.sections[kind] = section.at, section.end
        _READ[kind](layout, section)
        section.finish(f"the section of kind {kind}")
    if len(layout.bodies) != len(layout.functions):
        raise BrokenRuleError("damaged", f"{len(layout.functions)} functions have {len(layout.bodies)} bodies")
    if layout.start is not None:
        layout.type_of(layout.start)
    return layout


def _read_types(layout: Layout, section: Reader) -> None:
    for _ in range(section.count(limits.MAX_TYPES, "types", "types")):
        at = section.at
        if section.byte() != _FUNCTION_TYPE:
            raise BrokenRuleError("feature", f"the type at offset {at} is not that of a function", at)
        params = _value_types(section, limits.MAX_PARAMETERS, "parameters")
        results = _value_types(section, limits.MAX_RESULTS, "results")
        layout.types.append(FunctionType(params, results))


def _value_types(reader: Reader, limit: int, what: str) -> str:
    return "".join(_value_type(reader) for _ in range(reader.count(limit, f"{what} of a function", what)))


def _value_type(reader: Reader) -> str:
    at = reader.at
    code = reader.byte()
    if code not in LETTERS:
        what = _FOREIGN_TYPES.get(code, f"of an unknown type 0x{code:02x}")
        raise BrokenRuleError("feature", f"a value at offset {at} is {what}; only numbers can be", at)
    return LETTERS[code]


def _read_imports(layout: Layout, section: Reader) -> None:
    for _ in range(section.count(limits.MAX_IMPORTS, "imports", "imports")):
        at = section.at
        module, name, kind = section.name(), section.name(), section.byte()
        if kind != binary.FUNCTION_KIND:
            what = _KINDS[kind] if kind < len(_KINDS) else f"thing of kind {kind}"
            raise BrokenRuleError(
                "import-kind", f"it imports the {what} {module}.{name}; only functions can be imported", at
            )
        layout.imports.append(Import(module, name, _type_index(layout, section), at))


def _type_index(layout: Layout, reader: Reader) -> int:
    at = reader.at
    index = reader.u32()
    if index >= len(layout.types):
        raise BrokenRuleError("damaged", f"there is no type {index}, which offset {at} names", at)
    return index


def _read_functions(layout: Layout, section: Reader) -> None:
    for _ in range(section.count(limits.MAX_FUNCTIONS, "functions", "functions")):
        layout.functions.append(_type_index(layout, section))


def _read_table(layout: Layout, section: Reader) -> None:
    if section.count(1, "tables", "table") == 0:
        return
    at = section.at
    if section.byte() != _FUNCREF:
        raise BrokenRuleError("table", f"its table at offset {at} holds something else than functions", at)
    flags = section.byte()
    if flags > 1:
        raise BrokenRuleError("table", f"its table at offset {at} is shared or 64-bit", at)
    layout.table = section.u32()
    if flags:
        section.u32()  # the maximum: no instruction that may run lets it grow
    if layout.table > limits.MAX_TABLE_ELEMENTS:
        raise BrokenRuleError(
            "table", f"its table of {layout.table} elements is over the limit of {limits.MAX_TABLE_ELEMENTS}", at
        )


def _read_memory(layout: Layout, section: Reader) -> None:
    if section.count(1, "memories", "memory-kind") == 0:
        return
    at = section.at
    flags = section.byte()
    if flags > 1:
        raise BrokenRuleError(
            "memory-kind", f"its memory at offset {at} is shared, 64-bit or of other pages; compile it for wasm32", at
        )
    pages = section.u32()
    layout.memory = Memory(pages, section.u32() if flags else None, at)


def _read_globals(layout: Layout, section: Reader) -> None:
    for _ in range(section.count(limits.MAX_GLOBALS, "globals", "globals")):
        at = section.at
        _value_type(section)
        mutable = section.byte()
        if mutable > 1:
            raise BrokenRuleError("damaged", f"the global at offset {at} is damaged", at)
        _constant(section)
        layout.globals.append(bool(mutable))


def _constant(reader: Reader) -> int | None:
    """An initial value: one constant and no more. The integer it is, None for another number."""
    at = reader.at
    opcode = reader.byte()
    value = None
    if opcode in (I32_CONST, I64_CONST):
        value = reader.signed(32 if opcode == I32_CONST else 64)
    elif opcode in (F32_CONST, F64_CONST):
        reader.skip(4 if opcode == F32_CONST else 8)
    else:
        raise BrokenRuleError("constant", f"the initial value at offset {at} is not a plain number", at)
    if reader.byte() != END:
        raise BrokenRuleError("constant", f"the initial value at offset {at} is more than one number", at)
    return value


def _read_exports(layout: Layout, section: Reader) -> None:
    counts: Counter[int] = Counter()
    for _ in range(section.count(limits.MAX_EXPORTS, "exports", "exports")):
        at = section.at
        name, kind, index = section.name(), section.byte(), section.u32()
        layout.exports.append(Export(name, kind, index, at))
        if kind == binary.FUNCTION_KIND:
            layout.type_of(index)
            counts[index] += 1
            if counts[index] > limits.MAX_EXPORT_NAMES:
                raise BrokenRuleError(
                    "exports", f"function {index} is exported under over {limits.MAX_EXPORT_NAMES} names", at
                )


def _read_start(layout: Layout, section: Reader) -> None:
    layout.start = section.u32()


def _read_elements(layout: Layout, section: Reader) -> None:
    left = limits.MAX_TABLE_ELEMENTS
    for _ in range(section.count(limits.MAX_ELEMENT_SEGMENTS, "segments of its table", "elements")):
        at = section.at
        flags = section.u32()
        if flags & 1:
            raise BrokenRuleError("passive-segment", f"the segment of its table at offset {at} is passive", at)
        if flags:
            raise BrokenRuleError("feature", f"the segment of its table at offset {at} is of a later form", at)
        offset = _offset(section)
        count = section.count(left, "more elements of its table", "elements")
        left -= count
        if offset + count > layout.table:
            raise BrokenRuleError("elements", f"the segment at offset {at} lies outside its table", at)
        functions = tuple(section.u32() for _ in range(count))
        if functions:
            layout.type_of(max(functions))
        layout.elements.append(Elements(offset, functions))


def _offset(reader: Reader) -> int:
    """Where a segment begins: an i32, which counts as unsigned."""
    at = reader.at
    value = _constant(reader)
    if value is None:
        raise BrokenRuleError("constant", f"the place of a segment at offset {at} is not an integer", at)
    return value & 0xFFFF_FFFF


def _read_data_count(_: Layout, section: Reader) -> None:
    section.u32()  # for instructions that may not run


def _read_code(layout: Layout, section: Reader) -> None:
    for number in range(section.count(limits.MAX_FUNCTIONS, "bodies", "functions")):
        at = section.at
        length = section.u32()
        if length > limits.MAX_BODY_BYTES:
            raise BrokenRuleError(
                "body", f"the body of {length} bytes at offset {at} is over the limit of {limits.MAX_BODY_BYTES}", at
            )
        body = section.part(length)
        start = body.at
        if number >= len(layout.functions):
            raise BrokenRuleError("damaged", f"the body at offset {at} belongs to no function", at)
        total = len(layout.types[layout.functions[number]].params)
        for _ in range(body.count(limits.MAX_LOCAL_GROUPS, "groups of locals", "locals")):
            total += body.u32()
            _value_type(body)
        if total > limits.MAX_LOCALS:
            raise BrokenRuleError(
                "locals", f"the function at offset {at} has {total} locals, over the limit of {limits.MAX_LOCALS}", at
            )
        layout.bodies.append(Body(start, body.at, body.end))


def _read_data(layout: Layout, section: Reader) -> None:
    size = layout.memory.pages * binary.PAGE_BYTES if layout.memory else 0
    for _ in range(section.count(limits.MAX_DATA_SEGMENTS, "segments of data", "data")):
        at = section.at
        flags = section.u32()
        if flags & 1:
            raise BrokenRuleError("passive-segment", f"the data at offset {at} are passive", at)
        if flags:
            raise BrokenRuleError("feature", f"the data at offset {at} are of a later form", at)
        offset, length = _offset(section), section.u32()
        section.skip(length)
        if offset + length > size:
            raise BrokenRuleError("data", f"the data at offset {at} lie outside the memory that it starts with", at)


def _read_custom(layout: Layout, section: Reader) -> None:
    """Take the names of functions. A custom section is no part of the program: damage there is no fault."""
    try:
        if section.name() == _NAME_SECTION and not layout.names:
            layout.names = _function_names(section)
    except BrokenRuleError:
        layout.names = {}


def _function_names(section: Reader) -> dict[int, str]:
    while section.left():
        kind, part = section.byte(), section.part(section.u32())
        if kind == _FUNCTION_NAMES:
            count = part.count(limits.MAX_FUNCTIONS + limits.MAX_IMPORTS, "names", "name")
            return {part.u32(): part.take(part.u32())[:MAX_SHOWN_NAME].decode(errors="replace") for _ in range(count)}
    return {}


_READ: Mapping[int, Callable[[Layout, Reader], None]] = {
    binary.TYPE: _read_types,
    binary.IMPORT: _read_imports,
    binary.FUNCTION: _read_functions,
    binary.TABLE: _read_table,
    binary.MEMORY: _read_memory,
    binary.GLOBAL: _read_globals,
    binary.EXPORT: _read_exports,
    binary.START: _read_start,
    binary.ELEMENT: _read_elements,
    binary.DATA_COUNT: _read_data_count,
    binary.CODE: _read_code,
    binary.DATA: _read_data,
}
