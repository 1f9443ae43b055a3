"""A WebAssembly module's bytes, as far as the engine must know and change them (core specification, chapter 5).

wasm3 checks nothing, takes the names of the name section for exports, and knows no limit of memory but the one the
module declares. So custom sections are dropped, and the declared maximum of the memory is brought under the limit.
"""

from collections.abc import Iterator
from dataclasses import dataclass

PAGE_BYTES = 1 << 16
MAX_IMPORTS = 256
MAX_EXPORTS = 4096
MAX_NAME_BYTES = 256

_PREAMBLE = b"\0asm\1\0\0\0"
_CUSTOM, _IMPORT, _MEMORY, _EXPORT = 0, 2, 5, 7
_KINDS = ("function", "table", "memory", "global")
_FUNCTION = 0


class ModuleError(ValueError):
    """The bytes are not a module that the engine may load; the text says why."""


class MemoryLimitError(ModuleError):
    """The module needs more linear memory than its limit, from the start."""


@dataclass(frozen=True, slots=True)
class Module:
    """A module made ready for the engine."""

    code: bytes
    imports: tuple[tuple[str, str], ...]
    """(module, name) of each function it imports."""
    functions: frozenset[str]
    """Names of the functions it exports."""


def prepare(data: bytes, memory_bytes: int) -> Module:
    """The module without its custom sections, and with a memory that cannot grow over ``memory_bytes``.

    Raises ModuleError where the sections are damaged or it imports anything but functions.
    """
    if not data.startswith(_PREAMBLE):
        raise ModuleError("it does not start like a WebAssembly module of version 1")
    code = [_PREAMBLE]
    imports: list[tuple[str, str]] = []
    functions: list[str] = []
    for kind, content in _sections(data):
        if kind == _CUSTOM:
            continue
        if kind == _IMPORT:
            imports += _imports(_Reader(content))
        elif kind == _EXPORT:
            functions += _exports(_Reader(content))
        kept = _limit_memory(_Reader(content), memory_bytes // PAGE_BYTES) if kind == _MEMORY else content
        code.append(bytes((kind,)) + _encode_u32(len(kept)) + kept)
    return Module(b"".join(code), tuple(imports), frozenset(functions))


class _Reader:
    """A cursor that never leaves its bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, length: int) -> bytes:
        if length > self.left():
            raise ModuleError("it ends too early")
        self._at += length
        return self._data[self._at - length : self._at]

    def byte(self) -> int:
        return self.take(1)[0]

    def u32(self) -> int:
        value = 0
        for shift in range(0, 35, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        else:
            raise ModuleError("a number is longer than 32 bits")
        if value > 0xFFFF_FFFF:
            raise ModuleError("a number is longer than 32 bits")
        return value

    def count(self, limit: int, what: str) -> int:
        count = self.u32()
        if count > limit:
            raise ModuleError(f"{count} {what} are over the limit of {limit}")
        return count

    def name(self) -> str:
        try:
            return self.take(self.count(MAX_NAME_BYTES, "bytes of a name")).decode()
        except UnicodeDecodeError as error:
            raise ModuleError("a name is not UTF-8") from error


def _encode_u32(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _sections(data: bytes) -> Iterator[tuple[int, bytes]]:
    reader = _Reader(data)
    reader.take(len(_PREAMBLE))
    while reader.left():
        kind = reader.byte()
        yield kind, reader.take(reader.u32())


def _imports(section: _Reader) -> Iterator[tuple[str, str]]:
    for _ in range(section.count(MAX_IMPORTS, "imports")):
        module, name, kind = section.name(), section.name(), section.byte()
        if kind != _FUNCTION:
            what = _KINDS[kind] if kind < len(_KINDS) else f"thing of kind {kind}"
            raise ModuleError(f"it imports the {what} {module}.{name}; only functions can be imported")
        section.u32()  # index of its type
        yield module, name


def _exports(section: _Reader) -> Iterator[str]:
    for _ in range(section.count(MAX_EXPORTS, "exports")):
        name, kind = section.name(), section.byte()
        section.u32()  # index of what is exported
        if kind == _FUNCTION:
            yield name


def _limit_memory(section: _Reader, limit: int) -> bytes:
    """The memory section with its maximum at most ``limit`` pages."""
    if section.count(1, "memories") == 0:
        return b"\0"
    flags, first = section.byte(), section.u32()
    if flags > 1:
        raise ModuleError("its memory is shared or 64-bit; compile it for plain wasm32")
    if first > limit:
        raise MemoryLimitError(
            f"it starts with {first * PAGE_BYTES} bytes of memory, over its limit of {limit * PAGE_BYTES}"
        )
    most = min(limit, section.u32()) if flags else limit
    return b"\1\1" + _encode_u32(first) + _encode_u32(max(1, most))  # wasm3 takes a maximum of 0 for none at all
