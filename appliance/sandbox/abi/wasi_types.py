"""Numbers and records of WASI preview 1, as its ``witx`` files give them. Pure."""

import struct
from enum import IntEnum, IntFlag


class WasiErrno(IntEnum):
    """What a function answers. Only those that are used here."""

    SUCCESS = 0
    BADF = 8
    EXIST = 20
    FAULT = 21
    FBIG = 22
    INVAL = 28
    IO = 29
    ISDIR = 31
    MFILE = 33
    NAMETOOLONG = 37
    NOENT = 44
    NOSYS = 52
    NOTDIR = 54
    NOTSOCK = 57
    ROFS = 69
    SPIPE = 70
    NOTCAPABLE = 76


class WasiError(Exception):
    """A function's answer is this errno."""

    def __init__(self, errno: WasiErrno) -> None:
        super().__init__(errno.name)
        self.errno = errno


class FileType(IntEnum):
    UNKNOWN = 0
    CHARACTER_DEVICE = 2
    DIRECTORY = 3
    REGULAR_FILE = 4


class Right(IntFlag):
    """What may be done with a descriptor."""

    FD_READ = 1 << 1
    FD_SEEK = 1 << 2
    FD_FDSTAT_SET_FLAGS = 1 << 3
    FD_TELL = 1 << 5
    FD_WRITE = 1 << 6
    FD_ADVISE = 1 << 7
    PATH_OPEN = 1 << 13
    FD_READDIR = 1 << 14
    PATH_READLINK = 1 << 15
    PATH_FILESTAT_GET = 1 << 18
    FD_FILESTAT_GET = 1 << 21
    POLL_FD_READWRITE = 1 << 27


class OpenFlag(IntFlag):
    CREAT = 1
    DIRECTORY = 2
    EXCL = 4
    TRUNC = 8


LOOKUP_FLAGS = 0b1
OPEN_FLAGS = 0b1111
FD_FLAGS = 0b1_1111
WHENCE_SET, WHENCE_CUR, WHENCE_END = range(3)
ADVICES = range(6)
REALTIME, MONOTONIC, PROCESS_CPU, THREAD_CPU = range(4)
EVENT_CLOCK, EVENT_READ, EVENT_WRITE = range(3)
CLOCK_ABSOLUTE = 1
"""Of a subscription to a clock: its timeout is a point in time."""

FDSTAT = struct.Struct("<BxHxxxxQQ")
"""Type, flags, rights, rights of what is opened through it."""
FILESTAT = struct.Struct("<QQB7xQQQQQ")
"""Device, inode, type, links, size, and the times of access, change and change of status in ns."""
PRESTAT = struct.Struct("<B3xI")
"""0 for a directory, and the length of its name."""
DIRENT = struct.Struct("<QQIB3x")
"""Cookie of the next, inode, length of the name, type; the name follows."""
SUBSCRIPTION = struct.Struct("<QB7xI4xQQH6x")
"""User data, kind, and for a clock: which, timeout, precision, flags. For a descriptor: which."""
EVENT = struct.Struct("<QHB5xQH6x")
"""User data, errno, kind, and for a descriptor: bytes there are, flags."""
