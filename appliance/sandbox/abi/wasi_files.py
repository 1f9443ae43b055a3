"""A file system that is only in memory, and read-only: one directory of files, and the descriptors on it. Pure.

Names and bytes go in; every operation returns what it found or raises WasiError. Nothing of this machine is in it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from appliance.sandbox.abi.wasi_types import (
    DIRENT,
    FD_FLAGS,
    WHENCE_CUR,
    WHENCE_END,
    WHENCE_SET,
    FileType,
    OpenFlag,
    Right,
    WasiErrno,
    WasiError,
)

MAX_DESCRIPTORS = 64
"""Open at once."""
MAX_PATH_BYTES = 4096
MAX_OFFSET = (1 << 63) - 1

ROOT = "/"
FIRST_PREOPEN = 3

_NO_RIGHTS = Right(0)
_FILE_RIGHTS = (
    Right.FD_READ
    | Right.FD_SEEK
    | Right.FD_TELL
    | Right.FD_ADVISE
    | Right.FD_FILESTAT_GET
    | Right.FD_FDSTAT_SET_FLAGS
    | Right.POLL_FD_READWRITE
)
_DIRECTORY_RIGHTS = (
    Right.PATH_OPEN
    | Right.FD_READDIR
    | Right.PATH_READLINK
    | Right.PATH_FILESTAT_GET
    | Right.FD_FILESTAT_GET
    | Right.FD_FDSTAT_SET_FLAGS
)
_STREAM_RIGHTS = Right.FD_FILESTAT_GET | Right.FD_FDSTAT_SET_FLAGS | Right.POLL_FD_READWRITE


class File:
    """A name's bytes, made when they are first needed."""

    def __init__(self, name: str, inode: int, make: Callable[[], bytes], changed_ns: int = 0) -> None:
        self.name = name
        self.inode = inode
        self.changed_ns = changed_ns
        self._make = make

    @cached_property
    def content(self) -> bytes:
        return self._make()


class Sink(Protocol):
    """Where a stream's bytes go."""

    def write(self, data: bytes) -> None: ...


class Nothing:
    """Takes all and keeps nothing."""

    def write(self, data: bytes) -> None:
        pass


@dataclass
class Descriptor:
    """What a number stands for. Of ``file``, ``sink`` and neither: a file, an output, a directory or empty input."""

    type: FileType
    rights: Right
    inheriting: Right = _NO_RIGHTS
    preopened: bool = False
    flags: int = 0
    file: File | None = None
    sink: Sink | None = None
    offset: int = 0

    def require(self, right: Right) -> None:
        """NOTCAPABLE, or the errno that POSIX has for it, where the descriptor is not of that kind."""
        if right in self.rights:
            return
        if self.type == FileType.DIRECTORY and right & (Right.FD_READ | Right.FD_WRITE):
            raise WasiError(WasiErrno.ISDIR)
        if self.type != FileType.DIRECTORY and right & (Right.PATH_OPEN | Right.FD_READDIR | Right.PATH_FILESTAT_GET):
            raise WasiError(WasiErrno.NOTDIR)
        if self.file is None and right & (Right.FD_SEEK | Right.FD_TELL | Right.FD_ADVISE):
            raise WasiError(WasiErrno.SPIPE)
        raise WasiError(WasiErrno.NOTCAPABLE)

    def left(self) -> int:
        """Bytes that can be read from here on."""
        return max(0, len(self.file.content) - self.offset) if self.file else 0

    def read(self, length: int) -> bytes:
        """Up to ``length`` bytes from the descriptor's place on; empty at the end."""
        self.require(Right.FD_READ)
        data = self._read_at(self.offset, length)
        self.offset += len(data)
        return data

    def read_at(self, offset: int, length: int) -> bytes:
        """Likewise from ``offset``, and the descriptor's place stays."""
        self.require(Right.FD_READ)
        self.require(Right.FD_SEEK)
        return self._read_at(offset, length)

    def _read_at(self, offset: int, length: int) -> bytes:
        return self.file.content[offset : offset + length] if self.file else b""

    def seek(self, delta: int, whence: int) -> int:
        """The new place, which may be beyond the end; INVAL before the start."""
        self.require(Right.FD_SEEK)
        size = len(self.file.content) if self.file else 0
        bases = {WHENCE_SET: 0, WHENCE_CUR: self.offset, WHENCE_END: size}
        if whence not in bases:
            raise WasiError(WasiErrno.INVAL)
        target = bases[whence] + delta
        if not 0 <= target <= MAX_OFFSET:
            raise WasiError(WasiErrno.INVAL)
        self.offset = target
        return target


@dataclass(frozen=True)
class Stat:
    inode: int
    type: FileType
    size: int
    changed_ns: int


@dataclass
class FileSystem:
    """The descriptors of one program. Without ``files`` there is no directory at all."""

    files: Mapping[str, File] | None = None
    output: Sink = field(default_factory=Nothing)
    errors: Sink = field(default_factory=Nothing)
    interactive: bool = True
    """Whether the outputs are said to be a terminal: then programs write whole lines, and no large blocks."""

    def __post_init__(self) -> None:
        stream = FileType.CHARACTER_DEVICE if self.interactive else FileType.UNKNOWN
        self._open: dict[int, Descriptor] = {
            0: Descriptor(stream, _STREAM_RIGHTS | Right.FD_READ),
            1: Descriptor(stream, _STREAM_RIGHTS | Right.FD_WRITE, sink=self.output),
            2: Descriptor(stream, _STREAM_RIGHTS | Right.FD_WRITE, sink=self.errors),
        }
        if self.files is not None:
            self._open[FIRST_PREOPEN] = self._directory(preopened=True)

    def _directory(self, *, preopened: bool = False) -> Descriptor:
        inheriting = _DIRECTORY_RIGHTS | _FILE_RIGHTS
        return Descriptor(FileType.DIRECTORY, _DIRECTORY_RIGHTS, inheriting, preopened)

    # --- descriptors ---------------------------------------------------------------------------------------

    def get(self, number: int) -> Descriptor:
        """BADF where none is open."""
        if number not in self._open:
            raise WasiError(WasiErrno.BADF)
        return self._open[number]

    def close(self, number: int) -> None:
        self.get(number)
        del self._open[number]

    def renumber(self, number: int, to: int) -> None:
        """Move a descriptor to the place of another, which must be open, too."""
        self.get(to)
        self._open[to] = self.get(number)
        if to != number:
            del self._open[number]

    # --- paths ---------------------------------------------------------------------------------------------

    def find(self, directory: int, path: bytes) -> File | None:
        """The file of a path below a directory's descriptor; None for the directory itself.

        A path never leaves the directory: an absolute one, and one with ``..``, is NOTCAPABLE.
        """
        self.get(directory).require(Right.PATH_OPEN)
        if len(path) > MAX_PATH_BYTES:
            raise WasiError(WasiErrno.NAMETOOLONG)
        if b"\0" in path:
            raise WasiError(WasiErrno.INVAL)
        if not path:
            raise WasiError(WasiErrno.NOENT)
        if path.startswith(b"/"):
            raise WasiError(WasiErrno.NOTCAPABLE)
        file: File | None = None
        for part in path.decode("utf-8", "replace").split("/"):
            if file is not None:
                raise WasiError(WasiErrno.NOTDIR)
            if part == "..":
                raise WasiError(WasiErrno.NOTCAPABLE)
            if part not in ("", "."):
                file = self._named(part)
        return file

    def _named(self, name: str) -> File:
        assert self.files is not None  # there is no descriptor of a directory otherwise
        if name not in self.files:
            raise WasiError(WasiErrno.NOENT)
        return self.files[name]

    def open(self, directory: int, path: bytes, flags: OpenFlag, rights: int, fd_flags: int) -> int:
        """A new descriptor's number, the lowest that is free."""
        if fd_flags & ~FD_FLAGS:
            raise WasiError(WasiErrno.INVAL)
        file = self._found(directory, path, flags)
        if OpenFlag.TRUNC in flags or (file is not None and rights & Right.FD_WRITE):
            raise WasiError(WasiErrno.ROFS)
        if len(self._open) >= MAX_DESCRIPTORS:
            raise WasiError(WasiErrno.MFILE)
        opened = self._directory() if file is None else self._reading(file)
        opened.flags = fd_flags
        number = next(number for number in range(len(self._open) + 1) if number not in self._open)
        self._open[number] = opened
        return number

    def _found(self, directory: int, path: bytes, flags: OpenFlag) -> File | None:
        try:
            file = self.find(directory, path)
        except WasiError as error:
            if error.errno == WasiErrno.NOENT and OpenFlag.CREAT in flags:
                raise WasiError(WasiErrno.ROFS) from error
            raise
        if OpenFlag.CREAT in flags and OpenFlag.EXCL in flags:
            raise WasiError(WasiErrno.EXIST)
        if OpenFlag.DIRECTORY in flags and file is not None:
            raise WasiError(WasiErrno.NOTDIR)
        return file

    def _reading(self, file: File) -> Descriptor:
        _ = file.content  # now or never: a file that cannot be made cannot be opened
        return Descriptor(FileType.REGULAR_FILE, _FILE_RIGHTS, file=file)

    def stat(self, number: int) -> Stat:
        found = self.get(number)
        found.require(Right.FD_FILESTAT_GET)
        return _stat(found.file) if found.file or found.type == FileType.DIRECTORY else Stat(0, found.type, 0, 0)

    def stat_of(self, directory: int, path: bytes) -> Stat:
        return _stat(self.find(directory, path))

    def entries(self, number: int, cookie: int) -> Iterator[bytes]:
        """Records of a directory's entries from a cookie on; a cookie is the number of the entry that comes next."""
        self.get(number).require(Right.FD_READDIR)
        files = sorted(self.files.items()) if self.files else []
        listed: list[tuple[str, File | None]] = [(".", None), ("..", None), *files]
        for index, (name, file) in enumerate(listed[cookie:], cookie):
            encoded = name.encode()
            type = FileType.REGULAR_FILE if file else FileType.DIRECTORY
            yield DIRENT.pack(index + 1, _inode(file), len(encoded), type) + encoded


def _inode(file: File | None) -> int:
    return file.inode if file else 1


def _stat(file: File | None) -> Stat:
    if file is None:
        return Stat(_inode(None), FileType.DIRECTORY, 0, 0)
    return Stat(file.inode, FileType.REGULAR_FILE, len(file.content), file.changed_ns)
