"""What a guest that has broken out of wasm3 would try, or a model out of TFLite.

``python escape_attempts.py WHO LOCK [UID]``: each attempt is made in a process of its own, locked down like WHO:
``worker``, ``compiled`` (a worker with an engine that loads compiled code, once it has), ``model`` or ``delegate``.
LOCK is ``free`` (not locked down: only what harms nobody is tried), ``full``, or ``unfiltered`` (as where libseccomp is
absent). Prints JSON: by attempt, 0 where it succeeded, an errno, or minus the signal that killed it.
"""

import ctypes
import errno
import json
import mmap
import os
import platform
import resource
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from appliance.errors import DeviceError
from appliance.inference import lockdown as models
from appliance.ipc import lockdown as measures
from appliance.ipc.calls import Calls
from appliance.sandbox import lockdown

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
LISTENER = f"\0appliance-escape-{os.getpid()}"
BPF = {"x86_64": 321, "aarch64": 280}.get(platform.machine(), 386)
IO_URING_SETUP = 425
X32_GETPID = 0x4000_0000 + 39
PTRACE_SEIZE = 0x4206
PR_SET_DUMPABLE, PR_SET_SECCOMP = 4, 22
CLONE_NEWUSER = 0x1000_0000


def _compiled() -> None:
    lockdown.lock_down(1 << 20, 10, lockdown.LOADING)
    lockdown.forbid_code()


LOCKS: dict[str, Callable[[], object]] = {
    "worker": lambda: lockdown.lock_down(1 << 20, 10),
    "compiled": _compiled,
    "model": lambda: models.lock_down(0, ""),
    "delegate": lambda: models.lock_down(0, "libedgetpu.so.1"),
}


def call(function: Callable[..., int], *arguments: object) -> None:
    """A function of libc, with its failure as an OSError."""
    if function(*arguments) in (-1, 0xFFFF_FFFF_FFFF_FFFF):
        raise OSError(ctypes.get_errno(), "")


def fork() -> None:
    if os.fork() == 0:
        os._exit(0)


class Attempts:
    """All that is tried; prepared before the lockdown, so that only the attempt itself meets it."""

    def __init__(self, directory: str) -> None:
        self.file = Path(directory) / "precious"
        self.file.touch()
        self.parent = os.getpid()  # of those that try
        self.page = mmap.mmap(-1, mmap.PAGESIZE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.page))
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.listener.bind(LISTENER)

    def harmless(self) -> dict[str, Callable[[], object]]:
        """These succeed in a process that is not locked down."""
        executable = mmap.PROT_READ | mmap.PROT_EXEC
        anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        return {
            "nothing": lambda: None,
            "open": lambda: os.open("/etc/passwd", os.O_RDONLY),
            "write": lambda: os.open(self.file, os.O_WRONLY),
            "environ": lambda: os.open("/proc/self/environ", os.O_RDONLY),
            "environ of the parent": lambda: os.open(f"/proc/{self.parent}/environ", os.O_RDONLY),
            "stat": lambda: os.stat("/etc/passwd"),  # noqa: PTH116 - one call
            "unlink": lambda: os.unlink(self.file),  # noqa: PTH108 - one call
            "socket": lambda: call(libc.socket, socket.AF_INET, socket.SOCK_STREAM, 0),
            "unix socket": lambda: call(libc.socket, socket.AF_UNIX, socket.SOCK_STREAM, 0),
            "connect": lambda: self.ours.connect(LISTENER),
            "pass a descriptor": lambda: socket.send_fds(self.ours, [b"x"], [0]),
            "fork": fork,
            "execve": lambda: os.execv("/bin/true", ["true"]),
            "ptrace": lambda: call(libc.ptrace, PTRACE_SEIZE, self.parent, None, None),
            "kill": lambda: os.kill(self.parent, 0),
            "kill a thread": lambda: call(libc.tgkill, self.parent, self.parent, 0),
            "memfd_create": lambda: os.memfd_create("x"),
            "mprotect": lambda: call(libc.mprotect, ctypes.c_void_p(self.address), mmap.PAGESIZE, executable),
            "mmap": lambda: call(libc.mmap, None, mmap.PAGESIZE, executable, anonymous, -1, 0),
            "setrlimit": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0)),
            "user namespace": lambda: call(libc.unshare, CLONE_NEWUSER),
        }

    def harmful(self) -> dict[str, Callable[[], object]]:
        parameters = ctypes.create_string_buffer(120)
        map_of_one = (ctypes.c_uint32 * 32)(2, 4, 4, 1)
        attempts: dict[str, Callable[[], object]] = {
            "mount": lambda: call(libc.mount, b"none", b"/tmp", b"tmpfs", 0, None),
            "bpf": lambda: call(libc.syscall, BPF, 0, ctypes.byref(map_of_one), 128),
            "io_uring_setup": lambda: call(libc.syscall, IO_URING_SETUP, 8, parameters),
            "become root": lambda: os.setresuid(0, 0, 0),
            "filter": lambda: call(libc.prctl, PR_SET_SECCOMP, 0, 0, 0, 0),
        }
        if platform.machine() == "x86_64":
            attempts["x32"] = lambda: call(libc.syscall, X32_GETPID)
        return attempts


def outcome(attempt: Callable[[], object], lock: Callable[[], object]) -> int:
    """In a child, locked down first."""
    pid = os.fork()
    if pid == 0:
        _try(attempt, lock)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _try(attempt: Callable[[], object], lock: Callable[[], object]) -> NoReturn:
    try:
        lock()
        attempt()
    except OSError as error:
        os._exit(error.errno or errno.EIO)
    except BaseException:  # noqa: BLE001 - a defect of this script, in a fork
        os._exit(255)
    os._exit(0)


def main() -> None:
    who, kind, *user = sys.argv[1:]
    lockdown.prepare()
    if user:
        id = int(user[0])
        os.setgroups([])
        os.setresgid(id, id, id)
        os.setresuid(id, id, id)
        libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # as it is in a process that was started so
    if kind == "unfiltered":
        measures.prepare = without_libseccomp
    lock = LOCKS[who] if kind != "free" else lambda: None
    with tempfile.TemporaryDirectory() as directory:
        attempts = Attempts(directory)
        chosen = attempts.harmless() | (attempts.harmful() if kind != "free" else {})
        outcomes = {name: outcome(attempt, lock) for name, attempt in chosen.items()}
    sys.stdout.write(json.dumps(outcomes))


def without_libseccomp(calls: Calls) -> Callable[[], None]:
    def refuse() -> None:
        raise DeviceError("no libseccomp")

    return refuse


if __name__ == "__main__":
    main()
