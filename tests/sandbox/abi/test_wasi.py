"""Every function of WASI preview 1, called as a guest would, with good arguments and with bad ones."""

import struct
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from local_host import CAPTURED_NS, LocalHost, Memory

from appliance.sandbox.abi import Hosts
from appliance.sandbox.abi.guest import Guest
from appliance.sandbox.abi.native import Native
from appliance.sandbox.abi.signatures import WASI
from appliance.sandbox.abi.wasi_files import MAX_DESCRIPTORS, MAX_PATH_BYTES, File, FileSystem
from appliance.sandbox.abi.wasi_program import ExitError, Program
from appliance.sandbox.abi.wasi_snapshot_preview1 import (
    MAX_IOVECS,
    MAX_SUBSCRIPTIONS,
    MAX_TRANSFER_BYTES,
    MODULE,
    Wasi,
)
from appliance.sandbox.abi.wasi_types import DIRENT, EVENT, FDSTAT, FILESTAT, SUBSCRIPTION, FileType, Right, WasiErrno
from appliance.sandbox.abi.yomo import Yomo
from appliance.sandbox.engine import GuestFailedError
from appliance.sandbox.messages import MAX_LOG_LINE, MAX_LOGS_PER_FRAME

OK = WasiErrno.SUCCESS
LABELS = b"cat\ndog\n"
FRAME = bytes(range(256)) * 4
SIZE = 1 << 16
"""Bytes of the guest's memory."""
OUT, VECTOR, TEXT, BUFFER = 0x100, 0x200, 0x400, 0x1000
FAR = SIZE - 3
"""A pointer to less than four bytes."""
OLD_RIGHTS = 0x1FFF_FFFF
"""All that there are, as some libraries ask for."""


class Taken:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


class Guests:
    """A guest that is a memory, with its host; ``call`` returns the errno."""

    def __init__(self, *, files: bool = True, host_calls: int = 1_000_000) -> None:
        self.memory = Memory(SIZE)
        self.host = LocalHost(abi="command", instance=self.memory, host_calls=host_calls)
        self.host.begin(FRAME)
        self.out, self.errors = Taken(), Taken()
        self.made = 0
        guest = Guest(self.memory, self.host.services)
        wasi = Wasi(guest)
        self.memory.link(Hosts(guest, Native(guest), wasi, Yomo(guest)).wasi.functions())
        if files:
            content = {
                "labels.txt": File("labels.txt", 3, lambda: LABELS),
                "frame.jpg": File("frame.jpg", 2, self._make, CAPTURED_NS),
            }
            wasi.program = Program(
                FileSystem(content, self.out, self.errors, interactive=False), (b"program", b"/frame.jpg", b"")
            )

    def _make(self) -> bytes:
        self.made += 1
        return FRAME

    def call(self, name: str, *arguments: int) -> int:
        result = self.memory.call(MODULE, name, *arguments)
        assert result is not None
        return int(result)

    def put(self, at: int, data: bytes) -> tuple[int, int]:
        self.memory.data[at : at + len(data)] = data
        return at, len(data)

    def get(self, at: int, length: int) -> bytes:
        return bytes(self.memory.data[at : at + length])

    def u32(self, at: int = OUT) -> int:
        return int.from_bytes(self.get(at, 4), "little")

    def u64(self, at: int = OUT) -> int:
        return int.from_bytes(self.get(at, 8), "little")

    def vector(self, *buffers: tuple[int, int]) -> tuple[int, int]:
        self.put(VECTOR, b"".join(struct.pack("<II", *buffer) for buffer in buffers))
        return VECTOR, len(buffers)

    def open(self, path: bytes, flags: int = 0, rights: int = Right.FD_READ, directory: int = 3) -> int:
        """The errno of path_open; the descriptor is at OUT."""
        return self.call("path_open", directory, 1, *self.put(TEXT, path), flags, rights, 0, 0, OUT)

    def opened(self, path: bytes) -> int:
        assert self.open(path) == OK
        return self.u32()

    def read(self, number: int, length: int) -> bytes:
        assert self.call("fd_read", number, *self.vector((BUFFER, length)), OUT) == OK
        return self.get(BUFFER, self.u32())


@pytest.fixture
def wasi() -> Guests:
    return Guests()


def test_every_function_of_the_list_is_there(wasi: Guests) -> None:
    assert {name for module, name in wasi.memory.imports} == set(WASI)


# --- arguments, clocks, chance ------------------------------------------------------------------------------


def test_arguments(wasi: Guests) -> None:
    assert wasi.call("args_sizes_get", OUT, OUT + 4) == OK
    assert (wasi.u32(OUT), wasi.u32(OUT + 4)) == (3, len(b"program\0/frame.jpg\0\0"))
    assert wasi.call("args_get", VECTOR, BUFFER) == OK
    assert [wasi.u32(VECTOR + 4 * i) for i in range(3)] == [BUFFER, BUFFER + 8, BUFFER + 19]
    assert wasi.get(BUFFER, 20) == b"program\0/frame.jpg\0\0"
    assert wasi.call("args_get", FAR, BUFFER) == WasiErrno.FAULT
    assert wasi.call("args_get", VECTOR, SIZE - 10) == WasiErrno.FAULT
    assert wasi.call("args_sizes_get", FAR, OUT) == wasi.call("args_sizes_get", OUT, FAR) == WasiErrno.FAULT


def test_the_environment_is_empty(wasi: Guests) -> None:
    assert wasi.call("environ_sizes_get", OUT, OUT + 4) == OK
    assert wasi.u64() == 0
    assert wasi.call("environ_get", VECTOR, BUFFER) == OK


def test_clocks(wasi: Guests) -> None:
    before = time.time_ns(), time.monotonic_ns()
    seen = []
    for clock in (0, 1, 2, 3):
        assert wasi.call("clock_time_get", clock, 1, OUT) == OK
        seen.append(wasi.u64())
        assert wasi.call("clock_res_get", clock, OUT) == OK
        assert wasi.u64() >= 1
    assert before[0] <= seen[0] <= time.time_ns()
    assert before[1] <= seen[1] <= time.monotonic_ns()
    assert wasi.call("clock_time_get", 4, 1, OUT) == wasi.call("clock_res_get", 4, OUT) == WasiErrno.INVAL
    assert wasi.call("clock_time_get", 0, 1, SIZE - 7) == WasiErrno.FAULT


def test_chance_fills_the_buffer_and_differs_between_workers() -> None:
    seen = set()
    for _ in range(2):
        wasi = Guests()
        assert wasi.call("random_get", OUT, 64) == OK
        seen.add(wasi.get(OUT, 64))
        assert wasi.call("random_get", 1, SIZE - 1) == OK
        assert wasi.get(SIZE - 32, 32) != bytes(32)
    assert len(seen) == 2
    assert wasi.call("random_get", SIZE, 0) == OK
    assert wasi.call("random_get", 1, SIZE) == WasiErrno.FAULT


# --- the end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 3, 0xFFFF_FFFF])
def test_proc_exit_unwinds_the_guest(wasi: Guests, status: int) -> None:
    with pytest.raises(ExitError, match=f"exit status {status}") as ended:
        wasi.call("proc_exit", status)
    assert (ended.value.status, ended.value.kind) == (status, "trap")


def test_what_there_is_not(wasi: Guests) -> None:
    assert wasi.call("proc_raise", 6) == WasiErrno.NOSYS
    assert wasi.call("sched_yield") == OK
    number = wasi.opened(b"labels.txt")
    sockets: dict[str, tuple[int, ...]] = {
        "sock_accept": (0, OUT),
        "sock_recv": (VECTOR, 0, 0, OUT, OUT),
        "sock_send": (VECTOR, 0, 0, OUT),
        "sock_shutdown": (1,),
    }
    for name, arguments in sockets.items():
        for open_one in (0, 1, 3, number):
            assert wasi.call(name, open_one, *arguments) == WasiErrno.NOTSOCK
        assert wasi.call(name, 77, *arguments) == WasiErrno.BADF


# --- output -------------------------------------------------------------------------------------------------


def test_output_is_gathered_from_its_buffers(wasi: Guests) -> None:
    wasi.put(BUFFER, b"hello world")
    vector = wasi.vector((BUFFER, 6), (0, 0), (BUFFER + 6, 5))
    for number, sink in ((1, wasi.out), (2, wasi.errors)):
        assert wasi.call("fd_write", number, *vector, OUT) == OK
        assert wasi.u32() == 11
        assert sink.data == b"hello world"
    assert wasi.call("fd_write", 1, VECTOR, 0, OUT) == OK
    assert wasi.u32() == 0


def test_output_that_is_refused(wasi: Guests) -> None:
    good = wasi.vector((BUFFER, 4))
    assert wasi.call("fd_write", 0, *good, OUT) == WasiErrno.NOTCAPABLE
    assert wasi.call("fd_write", 3, *good, OUT) == WasiErrno.ISDIR
    assert wasi.call("fd_write", 4, *good, OUT) == WasiErrno.BADF
    assert wasi.call("fd_write", 0xFFFF_FFFF, *good, OUT) == WasiErrno.BADF
    assert wasi.call("fd_write", 1, *good, FAR) == WasiErrno.FAULT
    assert wasi.call("fd_write", 1, SIZE - 7, 1, OUT) == WasiErrno.FAULT
    assert wasi.call("fd_write", 1, VECTOR, MAX_IOVECS + 1, OUT) == WasiErrno.INVAL
    for buffer in ((SIZE - 1, 2), (0xFFFF_FFFF, 0xFFFF_FFFF), (SIZE + 1, 0)):
        assert wasi.call("fd_write", 1, *wasi.vector((BUFFER, 4), buffer), OUT) == WasiErrno.FAULT
    number = wasi.opened(b"labels.txt")
    assert wasi.call("fd_write", number, *wasi.vector((BUFFER, 4)), OUT) == WasiErrno.NOTCAPABLE
    assert wasi.out.data == b""


def test_one_write_is_bounded_however_often_a_buffer_is_named(wasi: Guests) -> None:
    vector = 0x2000, MAX_IOVECS
    wasi.put(0x2000, struct.pack("<II", 0, SIZE) * MAX_IOVECS)
    assert wasi.call("fd_write", 1, *vector, OUT) == OK
    assert wasi.u32() == len(wasi.out.data) == MAX_TRANSFER_BYTES


def test_without_files_lines_go_to_the_log() -> None:
    wasi = Guests(files=False)

    def say(number: int, text: bytes) -> None:
        assert wasi.call("fd_write", number, *wasi.vector(wasi.put(BUFFER, text)), OUT) == OK
        assert wasi.u32() == len(text)

    say(1, b"one\ntw")
    say(2, b"a warning\n\n")
    assert wasi.host.lines == [(20, "one"), (30, "a warning")]
    wasi.host.begin()
    say(1, b"o\n" + b"x" * 2000)
    say(1, b"x\n")
    assert wasi.host.lines[2:] == [(20, "two"), (20, "x" * MAX_LOG_LINE)]
    wasi.host.begin()
    say(1, b"y\n" * 1000)
    assert len(wasi.host.lines) == 4 + MAX_LOGS_PER_FRAME


def test_without_files_there_is_no_directory() -> None:
    wasi = Guests(files=False)
    for number in range(3, 10):
        assert wasi.call("fd_prestat_get", number, OUT) == WasiErrno.BADF
    assert wasi.open(b"labels.txt") == WasiErrno.BADF
    assert wasi.call("args_sizes_get", OUT, OUT + 4) == OK
    assert wasi.u64() == 0
    assert wasi.call("fd_fdstat_get", 1, OUT) == OK
    assert wasi.get(OUT, 1)[0] == FileType.CHARACTER_DEVICE


# --- reading ------------------------------------------------------------------------------------------------


def test_a_file_is_read_to_its_end(wasi: Guests) -> None:
    number = wasi.opened(b"labels.txt")
    assert number == 4
    assert wasi.read(number, 5) == b"cat\nd"
    assert wasi.call("fd_tell", number, OUT) == OK
    assert wasi.u64() == 5
    assert wasi.read(number, 0) == b""
    assert wasi.read(number, 100) == b"og\n"
    assert wasi.read(number, 100) == b""


def test_a_read_fills_its_buffers_in_order(wasi: Guests) -> None:
    number = wasi.opened(b"labels.txt")
    vector = wasi.vector((BUFFER, 3), (BUFFER + 100, 0), (BUFFER + 200, 100))
    assert wasi.call("fd_read", number, *vector, OUT) == OK
    assert wasi.u32() == 8
    assert (wasi.get(BUFFER, 4), wasi.get(BUFFER + 200, 6)) == (b"cat\0", b"\ndog\n\0")


def test_a_read_that_is_refused_does_not_move(wasi: Guests) -> None:
    number = wasi.opened(b"labels.txt")
    good = wasi.vector((BUFFER, 4))
    assert wasi.call("fd_read", number, *good, FAR) == WasiErrno.FAULT
    assert wasi.call("fd_read", number, *wasi.vector((SIZE - 1, 2)), OUT) == WasiErrno.FAULT
    assert wasi.call("fd_read", number, VECTOR, MAX_IOVECS + 1, OUT) == WasiErrno.INVAL
    assert wasi.call("fd_read", 1, *good, OUT) == WasiErrno.NOTCAPABLE
    assert wasi.call("fd_read", 3, *good, OUT) == WasiErrno.ISDIR
    assert wasi.call("fd_read", 9, *good, OUT) == WasiErrno.BADF
    assert wasi.read(number, 3) == b"cat"


def test_standard_input_is_at_its_end(wasi: Guests) -> None:
    assert wasi.read(0, 100) == b""


def test_reading_at_an_offset_leaves_the_place(wasi: Guests) -> None:
    number = wasi.opened(b"labels.txt")
    for offset, expected in ((4, b"dog"), (7, b"\n"), (8, b""), (1 << 63, b""), ((1 << 64) - 1, b"")):
        assert wasi.call("fd_pread", number, *wasi.vector((BUFFER, 3)), offset, OUT) == OK
        assert wasi.get(BUFFER, wasi.u32()) == expected
    assert wasi.read(number, 3) == b"cat"
    assert wasi.call("fd_pread", 0, *wasi.vector((BUFFER, 3)), 0, OUT) == WasiErrno.SPIPE
    assert wasi.call("fd_pread", 3, *wasi.vector((BUFFER, 3)), 0, OUT) == WasiErrno.ISDIR
    assert wasi.call("fd_pread", number, *wasi.vector((BUFFER, 3)), 0, FAR) == WasiErrno.FAULT


@pytest.mark.parametrize(
    ("moves", "place"),
    [
        ([(5, 0)], 5),
        ([(5, 0), (-2, 1)], 3),
        ([(-8, 2)], 0),
        ([(0, 2)], 8),
        ([(1000, 2)], 1008),
        ([((1 << 63) - 1, 0)], (1 << 63) - 1),
    ],
)
def test_seeking(wasi: Guests, moves: list[tuple[int, int]], place: int) -> None:
    number = wasi.opened(b"labels.txt")
    for delta, whence in moves:
        assert wasi.call("fd_seek", number, delta & 0xFFFF_FFFF_FFFF_FFFF, whence, OUT) == OK
    assert wasi.u64() == place
    assert wasi.read(number, 100) == LABELS[place:]


def test_seeking_that_is_refused_does_not_move(wasi: Guests) -> None:
    number = wasi.opened(b"labels.txt")
    assert wasi.read(number, 1) == b"c"
    minus_two = (1 << 64) - 2
    for delta, whence in ((minus_two, 0), (minus_two, 1), (minus_two - 7, 2), (0, 3), ((1 << 63) - 1, 1)):
        assert wasi.call("fd_seek", number, delta, whence, OUT) == WasiErrno.INVAL
    assert wasi.call("fd_seek", number, 0, 0, SIZE - 7) == WasiErrno.FAULT
    assert wasi.read(number, 1) == b"a"
    for stream in (0, 1, 2):
        assert wasi.call("fd_seek", stream, 0, 0, OUT) == wasi.call("fd_tell", stream, OUT) == WasiErrno.SPIPE
    assert wasi.call("fd_seek", 3, 0, 0, OUT) == WasiErrno.SPIPE
    assert wasi.call("fd_seek", 9, 0, 0, OUT) == wasi.call("fd_tell", 9, OUT) == WasiErrno.BADF


def test_the_frame_is_made_once_and_only_for_who_opens_it(wasi: Guests) -> None:
    wasi.opened(b"labels.txt")
    assert wasi.made == 0
    for _ in range(2):
        assert wasi.read(wasi.opened(b"frame.jpg"), 2000) == FRAME
    assert wasi.made == 1


# --- paths --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [b"labels.txt", b"./labels.txt", b".//./labels.txt"])
def test_paths_to_a_file(wasi: Guests, path: bytes) -> None:
    assert wasi.read(wasi.opened(path), 100) == LABELS


@pytest.mark.parametrize(
    ("path", "errno"),
    [
        (b"", WasiErrno.NOENT),
        (b"nothing", WasiErrno.NOENT),
        (b"LABELS.TXT", WasiErrno.NOENT),
        (b"etc/passwd", WasiErrno.NOENT),
        (b"labels.txt/", WasiErrno.NOTDIR),
        (b"labels.txt/.", WasiErrno.NOTDIR),
        (b"labels.txt/..", WasiErrno.NOTDIR),
        (b"labels.txt/../labels.txt", WasiErrno.NOTDIR),
        (b"..", WasiErrno.NOTCAPABLE),
        (b"../labels.txt", WasiErrno.NOTCAPABLE),
        (b"../../etc/passwd", WasiErrno.NOTCAPABLE),
        (b"./../etc/passwd", WasiErrno.NOTCAPABLE),
        (b"/labels.txt", WasiErrno.NOTCAPABLE),
        (b"/etc/passwd", WasiErrno.NOTCAPABLE),
        (b"/proc/self/mem", WasiErrno.NOTCAPABLE),
        (b"labels.txt\0", WasiErrno.INVAL),
        (b"\xff\xfe", WasiErrno.NOENT),
        (b"x" * (MAX_PATH_BYTES + 1), WasiErrno.NAMETOOLONG),
    ],
)
def test_paths_that_lead_nowhere(wasi: Guests, path: bytes, errno: int) -> None:
    assert wasi.open(path) == errno
    assert wasi.call("path_filestat_get", 3, 0, *wasi.put(TEXT, path), OUT) == errno
    assert wasi.call("path_readlink", 3, *wasi.put(TEXT, path), BUFFER, 10, OUT) == errno


def test_opening_that_is_refused(wasi: Guests) -> None:
    number = wasi.opened(b"labels.txt")
    path = wasi.put(TEXT, b"labels.txt")
    assert wasi.open(b"labels.txt", directory=number) == WasiErrno.NOTDIR
    assert wasi.open(b"labels.txt", directory=1) == WasiErrno.NOTDIR
    assert wasi.open(b"labels.txt", directory=9) == WasiErrno.BADF
    assert wasi.open(b"labels.txt", flags=2) == WasiErrno.NOTDIR
    assert wasi.open(b"labels.txt", flags=8) == WasiErrno.ROFS
    assert wasi.open(b"labels.txt", flags=1 | 4) == WasiErrno.EXIST
    assert wasi.open(b"new.txt", flags=1) == WasiErrno.ROFS
    assert wasi.open(b"../new.txt", flags=1) == WasiErrno.NOTCAPABLE
    assert wasi.open(b"labels.txt", rights=Right.FD_WRITE) == WasiErrno.ROFS
    assert wasi.open(b"labels.txt", flags=16) == WasiErrno.INVAL
    assert wasi.call("path_open", 3, 2, *path, 0, 0, 0, 0, OUT) == WasiErrno.INVAL
    assert wasi.call("path_open", 3, 0, *path, 0, 0, 0, 32, OUT) == WasiErrno.INVAL
    assert wasi.call("path_open", 3, 0, *path, 0, 0, 0, 0, FAR) == WasiErrno.FAULT
    assert wasi.call("path_open", 3, 0, FAR, 4, 0, 0, 0, 0, OUT) == WasiErrno.FAULT
    assert wasi.open(b"labels.txt", flags=1) == OK
    assert wasi.u32() == number + 1, "what was refused has opened nothing"


def test_the_directory_can_be_opened_again(wasi: Guests) -> None:
    assert wasi.open(b".", flags=2, rights=OLD_RIGHTS) == OK
    again = wasi.u32()
    assert wasi.open(b"labels.txt", directory=again) == OK
    assert wasi.call("fd_prestat_get", again, OUT) == WasiErrno.BADF


def test_descriptors_are_bounded_and_used_again(wasi: Guests) -> None:
    numbers = [wasi.opened(b"labels.txt") for _ in range(MAX_DESCRIPTORS - 4)]
    assert wasi.open(b"labels.txt") == WasiErrno.MFILE
    assert wasi.call("fd_close", numbers[7]) == OK
    assert wasi.call("fd_close", numbers[7]) == WasiErrno.BADF
    assert wasi.opened(b"labels.txt") == numbers[7]


def test_a_closed_descriptor_is_none(wasi: Guests) -> None:
    for number in (wasi.opened(b"labels.txt"), 1, 3):
        assert wasi.call("fd_close", number) == OK
        assert wasi.call("fd_fdstat_get", number, OUT) == WasiErrno.BADF
        assert wasi.call("fd_read", number, *wasi.vector((BUFFER, 1)), OUT) == WasiErrno.BADF
        assert wasi.call("fd_write", number, *wasi.vector((BUFFER, 1)), OUT) == WasiErrno.BADF
    assert wasi.open(b"labels.txt") == WasiErrno.BADF
    assert wasi.call("fd_prestat_get", 3, OUT) == WasiErrno.BADF


def test_a_descriptor_takes_the_place_of_another(wasi: Guests) -> None:
    first, second = wasi.opened(b"labels.txt"), wasi.opened(b"frame.jpg")
    assert wasi.call("fd_renumber", first, second) == OK
    assert wasi.read(second, 100) == LABELS
    assert wasi.call("fd_tell", first, OUT) == WasiErrno.BADF
    assert wasi.call("fd_renumber", second, second) == OK
    assert wasi.call("fd_tell", second, OUT) == OK
    assert wasi.call("fd_renumber", second, 50) == wasi.call("fd_renumber", 50, second) == WasiErrno.BADF


# --- what descriptors and files are -------------------------------------------------------------------------


def test_the_preopened_directory(wasi: Guests) -> None:
    assert wasi.call("fd_prestat_get", 3, OUT) == OK
    assert wasi.get(OUT, 8) == bytes([0, 0, 0, 0, 1, 0, 0, 0])
    assert wasi.call("fd_prestat_dir_name", 3, BUFFER, 1) == OK
    assert wasi.get(BUFFER, 1) == b"/"
    assert wasi.call("fd_prestat_dir_name", 3, BUFFER, 0) == WasiErrno.NAMETOOLONG
    assert wasi.call("fd_prestat_dir_name", 3, SIZE, 1) == WasiErrno.FAULT
    for number in (0, 1, 4):
        assert wasi.call("fd_prestat_get", number, OUT) == WasiErrno.BADF
        assert wasi.call("fd_prestat_dir_name", number, BUFFER, 1) == WasiErrno.BADF


def test_descriptors_say_what_they_are(wasi: Guests) -> None:
    number = wasi.opened(b"labels.txt")
    types = {}
    for each in (0, 1, 2, 3, number):
        assert wasi.call("fd_fdstat_get", each, OUT) == OK
        type, flags, rights, _ = FDSTAT.unpack(wasi.get(OUT, FDSTAT.size))
        types[each] = type
        assert flags == 0
        assert bool(rights & Right.FD_WRITE) == (each in (1, 2))
        assert bool(rights & Right.FD_SEEK) == (each == number)
    assert types == {0: 0, 1: 0, 2: 0, 3: FileType.DIRECTORY, number: FileType.REGULAR_FILE}
    assert wasi.call("fd_fdstat_get", 1, SIZE - 23) == WasiErrno.FAULT
    assert wasi.call("fd_fdstat_get", 9, OUT) == WasiErrno.BADF


def test_flags_are_kept(wasi: Guests) -> None:
    assert wasi.call("fd_fdstat_set_flags", 1, 4) == OK
    assert wasi.call("fd_fdstat_get", 1, OUT) == OK
    assert wasi.get(OUT + 2, 2) == b"\4\0"
    assert wasi.call("fd_fdstat_set_flags", 1, 32) == WasiErrno.INVAL
    assert wasi.call("fd_fdstat_set_flags", 9, 0) == WasiErrno.BADF


def test_rights_can_only_be_given_up(wasi: Guests) -> None:
    number = wasi.opened(b"labels.txt")
    assert wasi.call("fd_fdstat_set_rights", number, Right.FD_READ | Right.FD_WRITE, 0) == WasiErrno.NOTCAPABLE
    assert wasi.call("fd_fdstat_set_rights", number, 0, 1) == WasiErrno.NOTCAPABLE
    assert wasi.call("fd_fdstat_set_rights", number, Right.FD_SEEK, 0) == OK
    assert wasi.call("fd_read", number, *wasi.vector((BUFFER, 1)), OUT) == WasiErrno.NOTCAPABLE
    assert wasi.call("fd_fdstat_set_rights", number, Right.FD_READ, 0) == WasiErrno.NOTCAPABLE
    assert wasi.call("fd_fdstat_set_rights", 9, 0, 0) == WasiErrno.BADF


def test_stats(wasi: Guests) -> None:
    def stat(name: str, *arguments: int) -> tuple[int, ...]:
        assert wasi.call(name, *arguments, OUT) == OK
        return FILESTAT.unpack(wasi.get(OUT, FILESTAT.size))

    frame = (0, 2, FileType.REGULAR_FILE, 1, len(FRAME), *(CAPTURED_NS,) * 3)
    assert stat("fd_filestat_get", wasi.opened(b"frame.jpg")) == frame
    assert stat("path_filestat_get", 3, 1, *wasi.put(TEXT, b"frame.jpg")) == frame
    assert stat("path_filestat_get", 3, 1, *wasi.put(TEXT, b"."))[2] == FileType.DIRECTORY
    assert stat("fd_filestat_get", 3)[:3] == (0, 1, FileType.DIRECTORY)
    assert stat("fd_filestat_get", 1)[4] == 0
    assert wasi.call("fd_filestat_get", 9, OUT) == WasiErrno.BADF
    assert wasi.call("fd_filestat_get", 3, SIZE - 63) == WasiErrno.FAULT
    assert wasi.call("path_filestat_get", 3, 2, *wasi.put(TEXT, b"."), OUT) == WasiErrno.INVAL
    assert wasi.call("path_filestat_get", 1, 0, *wasi.put(TEXT, b"."), OUT) == WasiErrno.NOTDIR
    assert wasi.call("path_readlink", 3, *wasi.put(TEXT, b"frame.jpg"), BUFFER, 9, OUT) == WasiErrno.INVAL


def listed(wasi: Guests, capacity: int) -> list[bytes]:
    """As a C library lists a directory: from cookie to cookie, a cut entry once more."""
    names: list[bytes] = []
    cookie = 0
    while True:
        assert wasi.call("fd_readdir", 3, BUFFER, capacity, cookie, OUT) == OK
        used, at = wasi.u32(), 0
        data = wasi.get(BUFFER, used)
        while at + DIRENT.size <= used:
            following, _, length, type = DIRENT.unpack_from(data, at)
            name = data[at + DIRENT.size : at + DIRENT.size + length]
            if len(name) < length:
                break
            assert type == (FileType.REGULAR_FILE if b"." in name.strip(b".") else FileType.DIRECTORY)
            names.append(name)
            cookie, at = following, at + DIRENT.size + length
        if used < capacity:
            return names


@pytest.mark.parametrize("capacity", [34, 35, 60, 100, 4096])
def test_a_directory_is_listed_whatever_the_buffer(wasi: Guests, capacity: int) -> None:
    assert listed(wasi, capacity) == [b".", b"..", b"frame.jpg", b"labels.txt"]


@pytest.mark.parametrize("cookie", [4, 5, 1 << 32, (1 << 64) - 1])
def test_a_cookie_behind_the_last_entry(wasi: Guests, cookie: int) -> None:
    assert wasi.call("fd_readdir", 3, BUFFER, 100, cookie, OUT) == OK
    assert wasi.u32() == 0


def test_listing_that_is_refused(wasi: Guests) -> None:
    number = wasi.opened(b"labels.txt")
    assert wasi.call("fd_readdir", number, BUFFER, 100, 0, OUT) == WasiErrno.NOTDIR
    assert wasi.call("fd_readdir", 1, BUFFER, 100, 0, OUT) == WasiErrno.NOTDIR
    assert wasi.call("fd_readdir", 9, BUFFER, 100, 0, OUT) == WasiErrno.BADF
    assert wasi.call("fd_readdir", 3, SIZE - 1, 2, 0, OUT) == WasiErrno.FAULT
    assert wasi.call("fd_readdir", 3, BUFFER, 100, 0, FAR) == WasiErrno.FAULT


def test_advice_is_heard_and_syncing_has_nothing_to_do(wasi: Guests) -> None:
    number = wasi.opened(b"labels.txt")
    assert wasi.call("fd_advise", number, 0, 100, 5) == OK
    assert wasi.call("fd_advise", number, 0, 100, 6) == WasiErrno.INVAL
    assert wasi.call("fd_advise", 1, 0, 100, 0) == WasiErrno.SPIPE
    assert wasi.call("fd_advise", 9, 0, 100, 0) == WasiErrno.BADF
    for name in ("fd_sync", "fd_datasync"):
        assert [wasi.call(name, each) for each in (1, number, 9)] == [OK, OK, WasiErrno.BADF]


CHANGES: dict[str, tuple[int, ...]] = {
    "fd_allocate": (0, 1),
    "fd_filestat_set_size": (0,),
    "fd_filestat_set_times": (0, 0, 0),
    "fd_pwrite": (VECTOR, 1, 0, OUT),
    "path_create_directory": (TEXT, 1),
    "path_filestat_set_times": (0, TEXT, 1, 0, 0, 0),
    "path_remove_directory": (TEXT, 1),
    "path_rename": (TEXT, 1, 3, TEXT, 1),
    "path_unlink_file": (TEXT, 1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_nothing_can_be_changed(wasi: Guests, name: str) -> None:
    wasi.put(TEXT, b"n")
    target = 3 if name.startswith("path") else wasi.opened(b"labels.txt")
    assert wasi.call(name, target, *CHANGES[name]) == WasiErrno.ROFS
    assert wasi.call(name, 9, *CHANGES[name]) == WasiErrno.BADF
    assert wasi.call(name, 1, *CHANGES[name]) in (WasiErrno.NOTCAPABLE, WasiErrno.NOTDIR)


def test_no_link_can_be_made(wasi: Guests) -> None:
    for directory, errno in ((3, WasiErrno.ROFS), (1, WasiErrno.NOTDIR), (9, WasiErrno.BADF)):
        assert wasi.call("path_link", 3, 0, TEXT, 1, directory, TEXT, 1) == errno
        assert wasi.call("path_symlink", TEXT, 1, directory, TEXT, 1) == errno


# --- waiting ------------------------------------------------------------------------------------------------


def waited(wasi: Guests, *subscriptions: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(user data, errno, kind) of the events."""
    raw = b"".join(SUBSCRIPTION.pack(*(*each, *(0,) * (6 - len(each)))) for each in subscriptions)
    wasi.put(TEXT, raw)
    assert wasi.call("poll_oneoff", TEXT, BUFFER, len(subscriptions), OUT) == OK
    return [EVENT.unpack(wasi.get(BUFFER + EVENT.size * i, EVENT.size))[:3] for i in range(wasi.u32())]


def monotonic(wasi: Guests) -> int:
    assert wasi.call("clock_time_get", 1, 1, OUT) == OK
    return wasi.u64()


HOUR = 3600 * 10**9


def test_sleeping_takes_no_time_and_the_clock_has_moved(wasi: Guests) -> None:
    before, really = monotonic(wasi), time.monotonic_ns()
    assert waited(wasi, (7, 0, 1, HOUR)) == [(7, OK, 0)]
    assert monotonic(wasi) - before >= HOUR
    assert time.monotonic_ns() - really < HOUR
    assert waited(wasi, (7, 0, 1, monotonic(wasi) + HOUR, 0, 1)) == [(7, OK, 0)]
    assert monotonic(wasi) - before >= 2 * HOUR
    assert waited(wasi, (7, 0, 1, 5, 0, 1)) == [(7, OK, 0)], "a time that is past"


def test_the_first_clock_is_the_one_that_rings(wasi: Guests) -> None:
    assert waited(wasi, (1, 0, 1, 2 * HOUR), (2, 0, 1, HOUR), (3, 0, 0, HOUR)) == [(2, OK, 0), (3, OK, 0)]


def test_files_are_always_ready(wasi: Guests) -> None:
    number = wasi.opened(b"labels.txt")
    before = monotonic(wasi)
    events = waited(
        wasi, (1, 0, 1, HOUR), (2, 1, number), (3, 2, 1), (4, 1, 99), (5, 1, 3), (6, 0, 9, 1), (7, 0, 1, 1, 0, 2)
    )
    assert events == [
        (2, OK, 1),
        (3, OK, 2),
        (4, WasiErrno.BADF, 1),
        (5, WasiErrno.NOTCAPABLE, 1),
        (6, WasiErrno.INVAL, 0),
        (7, WasiErrno.INVAL, 0),
    ]
    assert monotonic(wasi) - before < HOUR


def test_waiting_that_is_refused(wasi: Guests) -> None:
    wasi.put(TEXT, SUBSCRIPTION.pack(1, 0, 1, HOUR, 0, 0))
    assert wasi.call("poll_oneoff", TEXT, BUFFER, 0, OUT) == WasiErrno.INVAL
    assert wasi.call("poll_oneoff", TEXT, BUFFER, MAX_SUBSCRIPTIONS + 1, OUT) == WasiErrno.INVAL
    assert wasi.call("poll_oneoff", SIZE - 47, BUFFER, 1, OUT) == WasiErrno.FAULT
    assert wasi.call("poll_oneoff", TEXT, SIZE - 31, 1, OUT) == WasiErrno.FAULT
    before = monotonic(wasi)
    assert wasi.call("poll_oneoff", TEXT, BUFFER, 1, FAR) == WasiErrno.FAULT
    assert monotonic(wasi) - before < HOUR
    wasi.put(TEXT, SUBSCRIPTION.pack(1, 3, 1, 0, 0, 0))
    assert wasi.call("poll_oneoff", TEXT, BUFFER, 1, OUT) == WasiErrno.INVAL


# --- anything -----------------------------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.integers(0, 12),
    st.sampled_from([OUT, VECTOR, TEXT, BUFFER, FAR, SIZE, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, (1 << 64) - 1]),
)
CALLS = st.tuples(st.sampled_from(sorted(WASI)), st.lists(NUMBERS, min_size=9, max_size=9))


@settings(max_examples=300, deadline=None)
@given(st.lists(CALLS, max_size=20), st.binary(max_size=2000), st.booleans())
def test_any_calls_get_an_errno_or_end_the_guest(calls: list[Any], memory: bytes, files: bool) -> None:
    wasi = Guests(files=files)
    wasi.put(OUT, memory)
    wasi.put(TEXT, b"labels.txt")
    for name, arguments in calls:
        widths = WASI[name].partition("(")[2].rstrip(")")
        masked = [
            value & (0xFFFF_FFFF if kind == "i" else (1 << 64) - 1)
            for value, kind in zip(arguments, widths, strict=False)
        ]
        try:
            assert wasi.call(name, *masked) in set(WasiErrno)
        except ExitError:
            assert name == "proc_exit"


def test_calls_are_counted() -> None:
    wasi = Guests(host_calls=5)
    for _ in range(5):
        assert wasi.call("sched_yield") == OK
    with pytest.raises(GuestFailedError, match="more than 5 host calls"):
        wasi.call("sched_yield")
