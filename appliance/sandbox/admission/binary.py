"""The bytes of a WebAssembly module, read within bounds and written (core specification, chapter 5). Pure."""

PAGE_BYTES = 1 << 16
PREAMBLE = b"\0asm\1\0\0\0"
MAX_NAME_BYTES = 1024
"""Of an import, an export or a function. Names of Rust and C++ have some hundred."""

CUSTOM, TYPE, IMPORT, FUNCTION, TABLE, MEMORY, GLOBAL, EXPORT, START, ELEMENT, CODE, DATA, DATA_COUNT = range(13)
"""Kinds of sections."""
ORDER = (TYPE, IMPORT, FUNCTION, TABLE, MEMORY, GLOBAL, EXPORT, START, ELEMENT, DATA_COUNT, CODE, DATA)
"""As they must follow each other."""
FUNCTION_KIND, TABLE_KIND, MEMORY_KIND, GLOBAL_KIND = range(4)
"""Kinds of what is imported and exported."""


class BrokenRuleError(ValueError):
    """The module may not run. ``rule`` is its name for machines, the text one sentence for people."""

    def __init__(self, rule: str, message: str, offset: int | None = None) -> None:
        super().__init__(message)
        self.rule = rule
        self.offset = offset
        """In the module's file, where the fault is at one place."""


class Reader:
    """A cursor that never leaves its part of the module. ``at`` is the offset in the file."""

    def __init__(self, data: bytes, start: int = 0, end: int | None = None) -> None:
        self.data = data
        self.at = start
        self.end = len(data) if end is None else end

    def left(self) -> int:
        return self.end - self.at

    def damaged(self, message: str) -> BrokenRuleError:
        return BrokenRuleError("damaged", message, self.at)

    def skip(self, length: int) -> int:
        """Pass over so many bytes; the offset of the first."""
        if length > self.left():
            raise self.damaged(f"it ends too early: {length} bytes are missing at offset {self.at}")
        self.at += length
        return self.at - length

    def take(self, length: int) -> bytes:
        start = self.skip(length)
        return self.data[start : start + length]

    def byte(self) -> int:
        return self.data[self.skip(1)]

    def part(self, length: int) -> "Reader":
        """A reader of the next so many bytes alone."""
        start = self.skip(length)
        return Reader(self.data, start, start + length)

    def u32(self) -> int:
        value = 0
        for shift in range(0, 35, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        if byte > 0x7F or value > 0xFFFF_FFFF:
            raise self.damaged(f"a number before offset {self.at} is longer than 32 bits")
        return value

    def signed(self, bits: int) -> int:
        """A signed number; it may be longer than ``bits``, but not much."""
        value = 0
        for shift in range(0, bits + 6, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value - (1 << shift + 7) if byte & 0x40 else value
        raise self.damaged(f"a number before offset {self.at} is longer than {bits} bits")

    def count(self, limit: int, what: str, rule: str) -> int:
        """How many things follow, each of one byte at least."""
        at = self.at
        count = self.u32()
        if count > limit:
            raise BrokenRuleError(rule, f"{count} {what} are over the limit of {limit}", at)
        if count > self.left():
            raise self.damaged(f"it ends too early: {count} {what} do not fit in {self.left()} bytes")
        return count

    def name(self) -> str:
        length = self.count(MAX_NAME_BYTES, "bytes of a name", "name")
        at = self.at
        try:
            name = self.take(length).decode()
        except UnicodeDecodeError as error:
            raise BrokenRuleError("damaged", f"the name at offset {at} is not UTF-8", at) from error
        if "\0" in name:  # where wasm3 believes that it ends
            raise BrokenRuleError("name", f"the name at offset {at} has a zero in it", at)
        return name

    def finish(self, what: str) -> None:
        if self.left():
            raise self.damaged(f"{self.left()} bytes are left over after {what}")


def encode_u32(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_signed(value: int) -> bytes:
    out = bytearray()
    while not -0x40 <= value < 0x40:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value & 0x7F)
    return bytes(out)


def encode_name(name: str) -> bytes:
    return encode_sized(name.encode())


def encode_sized(content: bytes) -> bytes:
    return encode_u32(len(content)) + content


def encode_vector(items: list[bytes]) -> bytes:
    return encode_u32(len(items)) + b"".join(items)


def encode_section(kind: int, content: bytes) -> bytes:
    return bytes((kind,)) + encode_sized(content)
