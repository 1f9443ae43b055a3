"""WASI preview 1, bounded: what a program's C library needs, and nothing of this machine.

There are standard output and error, clocks, random bytes, arguments, and a file system in memory where the
convention has one (:mod:`appliance.sandbox.abi.wasi_files`). Whatever would change a file is ROFS, every socket
NOTSOCK. Here pointers become bytes and back.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from time import monotonic_ns, process_time_ns, time_ns

from appliance.sandbox.abi.guest import Guest, Method
from appliance.sandbox.abi.wasi_files import MAX_PATH_BYTES, ROOT, FileSystem, Stat
from appliance.sandbox.abi.wasi_poll import poll
from appliance.sandbox.abi.wasi_program import ExitError, LineLog, Program
from appliance.sandbox.abi.wasi_types import (
    ADVICES,
    EVENT,
    FD_FLAGS,
    FDSTAT,
    FILESTAT,
    LOOKUP_FLAGS,
    MONOTONIC,
    OPEN_FLAGS,
    PRESTAT,
    PROCESS_CPU,
    REALTIME,
    SUBSCRIPTION,
    THREAD_CPU,
    FileType,
    OpenFlag,
    Right,
    WasiErrno,
    WasiError,
)
from appliance.sandbox.engine import HostFunction
from appliance.sandbox.messages import Errno
from appliance.sandbox.services import RefusalError

MODULE = "wasi_snapshot_preview1"

MAX_IOVECS = 1024
"""Buffers of one read or write: POSIX's IOV_MAX."""
MAX_TRANSFER_BYTES = 1 << 20
"""Bytes of one write; the rest is the guest's to write again, as POSIX allows."""
MAX_SUBSCRIPTIONS = 64
RANDOM_CHUNK = 64 << 10
RESOLUTION_NS = 1

_IOVEC = struct.Struct("<II")
_U64 = 0xFFFF_FFFF_FFFF_FFFF
_CHANGES_FILE = ("fd_allocate", "fd_filestat_set_size", "fd_filestat_set_times", "fd_pwrite")
_CHANGES_DIRECTORY = (
    "path_create_directory",
    "path_filestat_set_times",
    "path_remove_directory",
    "path_unlink_file",
    "path_rename",
)
_SOCKET = ("sock_accept", "sock_recv", "sock_send", "sock_shutdown")


class Wasi:
    """The host functions. A convention that has programs sets :attr:`program` for each of them.

    Before that, and for all other conventions, there are no files and no arguments, and both outputs go to the log.
    """

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._random = guest.services.random
        self._slept_ns = 0
        output, errors = LineLog(lambda line: guest.note(20, line)), LineLog(lambda line: guest.note(30, line))
        self.program = Program(FileSystem(output=output, errors=errors))

    def functions(self) -> Iterable[HostFunction]:
        answers: dict[str, Callable[..., None]] = {
            "args_get": lambda vector, out: self._put_texts(self.program.arguments, vector, out),
            "args_sizes_get": lambda count, size: self._put_sizes(self.program.arguments, count, size),
            "environ_get": lambda vector, out: self._put_texts((), vector, out),
            "environ_sizes_get": lambda count, size: self._put_sizes((), count, size),
            "clock_res_get": self._clock_res_get,
            "clock_time_get": self._clock_time_get,
            "fd_advise": self._fd_advise,
            "fd_close": self._fd_close,
            "fd_datasync": self._fd_sync,
            "fd_fdstat_get": self._fd_fdstat_get,
            "fd_fdstat_set_flags": self._fd_fdstat_set_flags,
            "fd_fdstat_set_rights": self._fd_fdstat_set_rights,
            "fd_filestat_get": self._fd_filestat_get,
            "fd_pread": self._fd_pread,
            "fd_prestat_get": self._fd_prestat_get,
            "fd_prestat_dir_name": self._fd_prestat_dir_name,
            "fd_read": self._fd_read,
            "fd_readdir": self._fd_readdir,
            "fd_renumber": self._fd_renumber,
            "fd_seek": self._fd_seek,
            "fd_sync": self._fd_sync,
            "fd_tell": self._fd_tell,
            "fd_write": self._fd_write,
            "path_filestat_get": self._path_filestat_get,
            "path_link": lambda *arguments: self._changed_directory(arguments[4]),
            "path_open": self._path_open,
            "path_readlink": self._path_readlink,
            "path_symlink": lambda *arguments: self._changed_directory(arguments[2]),
            "poll_oneoff": self._poll_oneoff,
            "proc_exit": _exit,
            "proc_raise": lambda _signal: _fail(WasiErrno.NOSYS),
            "random_get": self._random_get,
            "sched_yield": lambda: None,
        }
        answers |= dict.fromkeys(_CHANGES_FILE, self._changed_file)
        answers |= dict.fromkeys(_CHANGES_DIRECTORY, self._changed_directory)
        answers |= dict.fromkeys(_SOCKET, self._sock)
        methods = {name: _answering(method) for name, method in answers.items()}
        return self._guest.provide(MODULE, methods, _errno_of)

    @property
    def _files(self) -> FileSystem:
        return self.program.files

    # --- arguments -----------------------------------------------------------------------------------------

    def _put_texts(self, texts: tuple[bytes, ...], vector: int, out: int) -> None:
        self._guest.view(vector, 4 * len(texts))
        for index, text in enumerate(texts):
            self._guest.write_u32(vector + 4 * index, out)
            out += self._guest.write(out, text + b"\0")

    def _put_sizes(self, texts: tuple[bytes, ...], count: int, size: int) -> None:
        self._guest.write_u32(count, len(texts))
        self._guest.write_u32(size, sum(len(text) + 1 for text in texts))

    # --- clocks and chance ---------------------------------------------------------------------------------

    def _now(self, clock: int) -> int:
        """Real time, so that what a guest writes down can be compared with other clocks. Only the monotonic clock
        shows that it slept: it starts anywhere, as everybody's does."""
        if clock == REALTIME:
            return time_ns()
        if clock == MONOTONIC:
            return monotonic_ns() + self._slept_ns & _U64
        if clock in (PROCESS_CPU, THREAD_CPU):
            return process_time_ns()
        raise WasiError(WasiErrno.INVAL)

    def _clock_time_get(self, clock: int, _precision: int, out: int) -> None:
        self._put_u64(out, self._now(clock))

    def _clock_res_get(self, clock: int, out: int) -> None:
        self._now(clock)
        self._put_u64(out, RESOLUTION_NS)

    def _put_u64(self, out: int, value: int) -> None:
        self._guest.write(out, value.to_bytes(8, "little"))

    def _random_get(self, out: int, length: int) -> None:
        buffer = self._guest.view(out, length)
        for start in range(0, length, RANDOM_CHUNK):
            part = buffer[start : start + RANDOM_CHUNK]
            part[:] = self._random.randbytes(len(part))

    def _poll_oneoff(self, subscriptions: int, out: int, count: int, stored: int) -> None:
        if not 0 < count <= MAX_SUBSCRIPTIONS:
            raise WasiError(WasiErrno.INVAL)
        raw = self._guest.read(subscriptions, count * SUBSCRIPTION.size)
        self._guest.view(out, count * EVENT.size)
        self._guest.view(stored, 4)
        records = [raw[start : start + SUBSCRIPTION.size] for start in range(0, len(raw), SUBSCRIPTION.size)]
        events, slept = poll(records, self._files, self._now)
        self._slept_ns += slept
        self._guest.write(out, b"".join(events))
        self._guest.write_u32(stored, len(events))

    # --- descriptors ---------------------------------------------------------------------------------------

    def _buffers(self, vector: int, count: int) -> list[memoryview]:
        """The buffers of a read or write, all inside the memory."""
        if count > MAX_IOVECS:
            raise WasiError(WasiErrno.INVAL)
        records = self._guest.read(vector, count * _IOVEC.size)
        return [self._guest.view(pointer, length) for pointer, length in _IOVEC.iter_unpack(records)]

    def _fd_close(self, number: int) -> None:
        self._files.close(number)

    def _fd_renumber(self, number: int, to: int) -> None:
        self._files.renumber(number, to)

    def _fd_sync(self, number: int) -> None:
        """What is written is written: there is nothing to wait for."""
        self._files.get(number)

    def _fd_write(self, number: int, vector: int, count: int, written: int) -> None:
        descriptor = self._files.get(number)
        descriptor.require(Right.FD_WRITE)
        buffers = self._buffers(vector, count)
        self._guest.view(written, 4)
        data = b"".join(_first(MAX_TRANSFER_BYTES, buffers))
        if descriptor.sink and data:
            descriptor.sink.write(data)
        self._guest.write_u32(written, len(data))

    def _fd_read(self, number: int, vector: int, count: int, read: int) -> None:
        descriptor = self._files.get(number)
        descriptor.require(Right.FD_READ)
        buffers = self._buffers(vector, count)
        self._guest.view(read, 4)
        self._guest.write_u32(read, _fill(buffers, descriptor.read(sum(map(len, buffers)))))

    def _fd_pread(self, number: int, vector: int, count: int, offset: int, read: int) -> None:
        descriptor = self._files.get(number)
        buffers = self._buffers(vector, count)
        self._guest.view(read, 4)
        self._guest.write_u32(read, _fill(buffers, descriptor.read_at(offset, sum(map(len, buffers)))))

    def _fd_seek(self, number: int, delta: int, whence: int, out: int) -> None:
        self._guest.view(out, 8)
        signed = delta - (1 << 64) if delta >> 63 else delta
        self._put_u64(out, self._files.get(number).seek(signed, whence))

    def _fd_tell(self, number: int, out: int) -> None:
        descriptor = self._files.get(number)
        descriptor.require(Right.FD_TELL)
        self._put_u64(out, descriptor.offset)

    def _fd_fdstat_get(self, number: int, out: int) -> None:
        found = self._files.get(number)
        self._guest.write(out, FDSTAT.pack(found.type, found.flags, found.rights, found.inheriting))

    def _fd_fdstat_set_flags(self, number: int, flags: int) -> None:
        descriptor = self._files.get(number)
        descriptor.require(Right.FD_FDSTAT_SET_FLAGS)
        if flags & ~FD_FLAGS:
            raise WasiError(WasiErrno.INVAL)
        descriptor.flags = flags

    def _fd_fdstat_set_rights(self, number: int, rights: int, inheriting: int) -> None:
        """Rights can be given up, and never be had again."""
        descriptor = self._files.get(number)
        if rights & ~descriptor.rights or inheriting & ~descriptor.inheriting:
            raise WasiError(WasiErrno.NOTCAPABLE)
        descriptor.rights, descriptor.inheriting = Right(rights), Right(inheriting)

    def _fd_advise(self, number: int, _offset: int, _length: int, advice: int) -> None:
        self._files.get(number).require(Right.FD_ADVISE)
        if advice not in ADVICES:
            raise WasiError(WasiErrno.INVAL)

    def _put_stat(self, stat: Stat, out: int) -> None:
        times = (stat.changed_ns,) * 3
        self._guest.write(out, FILESTAT.pack(0, stat.inode, stat.type, 1, stat.size, *times))

    def _fd_filestat_get(self, number: int, out: int) -> None:
        self._put_stat(self._files.stat(number), out)

    def _preopened(self, number: int) -> None:
        """BADF for every other: that is what ends a C library's search for directories."""
        if not self._files.get(number).preopened:
            raise WasiError(WasiErrno.BADF)

    def _fd_prestat_get(self, number: int, out: int) -> None:
        self._preopened(number)
        self._guest.write(out, PRESTAT.pack(0, len(ROOT)))

    def _fd_prestat_dir_name(self, number: int, out: int, capacity: int) -> None:
        self._preopened(number)
        if capacity < len(ROOT):
            raise WasiError(WasiErrno.NAMETOOLONG)
        self._guest.write(out, ROOT.encode())

    def _fd_readdir(self, number: int, out: int, capacity: int, cookie: int, used: int) -> None:
        """As many entries as fit, the last perhaps cut: a buffer that is full means that there may be more."""
        buffer = self._guest.view(out, capacity)
        self._guest.view(used, 4)
        entries = b"".join(self._files.entries(number, cookie))
        self._guest.write_u32(used, _fill([buffer], entries[:capacity]))

    # --- paths ---------------------------------------------------------------------------------------------

    def _path(self, pointer: int, length: int) -> bytes:
        self._guest.view(pointer, length)
        if length > MAX_PATH_BYTES:
            raise WasiError(WasiErrno.NAMETOOLONG)
        return self._guest.read(pointer, length)

    def _path_open(self, *arguments: int) -> None:
        directory, lookup, path, length, flags, rights, _inheriting, fd_flags, out = arguments
        if lookup & ~LOOKUP_FLAGS or flags & ~OPEN_FLAGS:
            raise WasiError(WasiErrno.INVAL)
        name = self._path(path, length)
        self._guest.view(out, 4)
        self._guest.write_u32(out, self._files.open(directory, name, OpenFlag(flags), rights, fd_flags))

    def _path_filestat_get(self, directory: int, lookup: int, path: int, length: int, out: int) -> None:
        if lookup & ~LOOKUP_FLAGS:
            raise WasiError(WasiErrno.INVAL)
        self._put_stat(self._files.stat_of(directory, self._path(path, length)), out)

    def _path_readlink(self, directory: int, path: int, length: int, *_: int) -> None:
        self._files.find(directory, self._path(path, length))
        raise WasiError(WasiErrno.INVAL)  # it is there, and no link: there are none

    def _changed_file(self, number: int, *_: int) -> None:
        if self._files.get(number).type not in (FileType.REGULAR_FILE, FileType.DIRECTORY):
            raise WasiError(WasiErrno.NOTCAPABLE)
        raise WasiError(WasiErrno.ROFS)

    def _changed_directory(self, number: int, *_: int) -> None:
        self._files.get(number).require(Right.PATH_OPEN)
        raise WasiError(WasiErrno.ROFS)

    def _sock(self, number: int, *_: int) -> None:
        self._files.get(number)
        raise WasiError(WasiErrno.NOTSOCK)


def _answering(method: Callable[..., None]) -> Method:
    """``method`` as a function that answers with an errno."""

    def answer(*arguments: int) -> int:
        try:
            method(*arguments)
        except WasiError as error:
            return error.errno
        return WasiErrno.SUCCESS

    return answer


def _errno_of(refusal: RefusalError) -> int:
    """A refusal of the host's as WASI says it: EINVAL is a pointer outside the memory."""
    return WasiErrno.FAULT if refusal.code == Errno.EINVAL else WasiErrno.IO


def _exit(status: int) -> None:
    raise ExitError(status)


def _fail(errno: WasiErrno) -> None:
    raise WasiError(errno)


def _first(limit: int, buffers: list[memoryview]) -> Iterator[memoryview]:
    """The buffers up to ``limit`` bytes of them all."""
    for buffer in buffers:
        yield buffer[:limit]
        limit -= min(limit, len(buffer))


def _fill(buffers: list[memoryview], data: bytes) -> int:
    """Spread over the buffers; how many bytes that were."""
    left = memoryview(data)
    for buffer in buffers:
        part = left[: len(buffer)]
        buffer[: len(part)] = part
        left = left[len(part) :]
    return len(data)
