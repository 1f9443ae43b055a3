"""What a process may still do, taken away from inside, for good.

Limits that every Linux has come first, and without them no guest runs. Then come measures that a kernel, a container
or an ordinary user may not have: each is tried, and :class:`Lockdown` tells what came of it. They overlap on purpose:
where one is missing, others deny most of the same.

``python -m appliance.sandbox.lockdown`` locks itself down and prints that as JSON.
"""

import ctypes
import mmap
import os
import resource
from collections.abc import Callable
from ctypes import c_int, c_long, c_size_t, c_uint32, c_uint64, c_ulong
from functools import cache
from pathlib import Path

import msgspec

from appliance.errors import DeviceError
from appliance.ipc.child import die_with_parent
from appliance.sandbox.messages import MAX_REASON, Lockdown

MARGIN_BYTES = 96 << 20
"""Address space on top of what the process has and of the guest's memory: the largest message in flight (an inference
of 12 MiB of tensors is there three times over), what wasm3 leaks before the worker is replaced, its code pages."""
STACK_BYTES = 64 << 20
"""wasm3 recurses on the C stack."""
NOBODY = 65534
"""User and group of workers, where they are started by root."""

SYSTEM_CALLS = (
    *("sendto", "recvfrom", "send", "recv"),  # the socket; no sendmsg and recvmsg: descriptors cannot pass
    "write",  # wasm3 prints a backtrace for a trap, to /dev/null
    *("brk", "munmap", "mremap", "madvise"),  # memory; mmap is below
    *("futex", "futex_time64"),  # the interpreter's locks
    *("clock_gettime", "clock_gettime64"),  # the CPU clock, and the others where the vDSO lacks them
    *("rt_sigreturn", "restart_syscall"),  # after a stop and a continue
    "close",  # the ring's descriptor, at the end
    *("exit", "exit_group"),
)
"""All that a running worker may call, by the names of every architecture; one that has not such a call skips it."""
MAPPING_CALLS = ("mmap", "mmap2")
"""Allowed, too, unless the memory were executable: what a guest writes never becomes machine code."""

_PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h
_CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWNET = 0x0800_0000, 0x1000_0000, 0x4000_0000  # linux/sched.h
_CAPABILITY_VERSION_3 = 0x2008_0522  # linux/capability.h
_LANDLOCK_CREATE, _LANDLOCK_RESTRICT = 444, 446  # the same numbers on every architecture
_LANDLOCK_VERSION = 1
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
"""ABI of Landlock -> how many rights on files it knows (linux/landlock.h): bits from 0 on."""
_NETWORK_ABI, _NETWORK_RIGHTS = 4, 0b11
_SCOPES_ABI, _SCOPES = 6, 0b11
_UNKNOWN_CALL = -1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = (c_int, c_ulong, c_ulong, c_ulong, c_ulong)


class _RulesetAttr(ctypes.Structure):
    """``landlock_ruleset_attr``; a kernel that knows fewer fields accepts more of them while they are 0."""

    _fields_ = (("files", c_uint64), ("network", c_uint64), ("scoped", c_uint64))


def lock_down(memory_bytes: int, cpu_seconds: int) -> Lockdown:
    """Leave a worker what it needs to run a guest of ``memory_bytes`` of linear memory, and no more.

    Everything must have been imported and mapped, and :func:`prepare` have been called: from here on no file can be
    opened, and a system call that is not in SYSTEM_CALLS ends the process with SIGSYS. OSError where even the limits
    cannot be set.
    """
    parent = os.getppid()
    _limit(resource.RLIMIT_STACK, STACK_BYTES)
    _limit(resource.RLIMIT_AS, _address_space() + memory_bytes + MARGIN_BYTES)
    _limit(resource.RLIMIT_CPU, cpu_seconds)
    _limit(resource.RLIMIT_NPROC, 0)
    for which in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        _limit(which, 0)
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    report = Lockdown()
    _try(report, "network namespace", _leave_namespaces)
    _try(report, "uid", _become_nobody)
    _try(report, "capabilities", _drop_capabilities)
    die_with_parent(parent)  # again: the kernel forgets it when the user changes
    _try(report, "landlock", _close_files)
    _limit(resource.RLIMIT_NOFILE, 0)  # Landlock needed one
    _try(report, "seccomp", _filter_calls)
    return report


def _try(report: Lockdown, name: str, measure: Callable[[], str]) -> None:
    """Take a measure. It returns what is in force, or raises why not."""
    try:
        report.in_force.append(measure())
    except OSError as error:
        report.missing[name] = os.strerror(error.errno) if error.errno else str(error)[:MAX_REASON]
    except DeviceError as error:
        report.missing[name] = str(error)[:MAX_REASON]


# --- limits -------------------------------------------------------------------------------------------------


def _limit(which: int, value: int) -> None:
    """Soft and hard limit: never above the hard limit that is there."""
    hard = resource.getrlimit(which)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def _address_space() -> int:
    """Bytes of address space this process has mapped now."""
    with Path("/proc/self/statm").open("rb") as statm:  # in bytes: a codec would be imported in every worker
        return int(statm.read().split()[0]) * resource.getpagesize()


# --- measures, in order -------------------------------------------------------------------------------------


def _leave_namespaces() -> str:
    """No network but a loopback that is down, no System V memory of others."""
    ours = 0 if os.geteuid() == 0 else _CLONE_NEWUSER  # an ordinary user may, within a user namespace of its own
    _checked(_libc.unshare(c_int(ours | _CLONE_NEWNET | _CLONE_NEWIPC)))
    return "network namespace"


def _become_nobody() -> str:
    """Own no file of the box, and no process but workers."""
    if os.geteuid() != 0:
        raise DeviceError("not root")
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    return f"uid {NOBODY}"


def _drop_capabilities() -> str:
    """Those of root where it could not become nobody, or those that came with the user namespace."""
    header = (c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    none = (c_uint32 * 6)()  # two words each of effective, permitted and inheritable
    _checked(_libc.capset(header, none))
    return "no capabilities"


def _close_files() -> str:
    """Landlock with no rule at all: no path can be opened, run or changed, no port bound, nobody outside signalled."""
    abi = _checked(_libc.syscall(c_long(_LANDLOCK_CREATE), None, c_size_t(0), c_uint32(_LANDLOCK_VERSION)))
    rights = _RulesetAttr(
        files=(1 << max(count for since, count in _FILE_RIGHTS.items() if since <= abi)) - 1,
        network=_NETWORK_RIGHTS if abi >= _NETWORK_ABI else 0,
        scoped=_SCOPES if abi >= _SCOPES_ABI else 0,
    )
    size = c_size_t(ctypes.sizeof(rights))
    ruleset = _checked(_libc.syscall(c_long(_LANDLOCK_CREATE), ctypes.byref(rights), size, c_uint32(0)))
    try:
        _checked(_libc.syscall(c_long(_LANDLOCK_RESTRICT), c_int(ruleset), c_uint32(0)))
    finally:
        os.close(ruleset)
    return f"landlock {abi}"


def _filter_calls() -> str:
    """SIGSYS to whoever calls what a worker does not need."""
    prepare()()
    return "seccomp"


def _checked(result: int) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


# --- the filter of system calls -----------------------------------------------------------------------------


@cache
def prepare() -> Callable[[], None]:
    """What puts the filter of system calls in force; it raises DeviceError where there can be none.

    Call it once before forking. Finding libseccomp runs a program and opens files.
    """
    try:
        return _build_filter()
    except (ImportError, RuntimeError, AttributeError) as error:  # the package is absent, the library is, or is too old
        reason = f"libseccomp cannot be loaded ({error}): apt-get install libseccomp2"
    except OSError as error:
        reason = f"libseccomp makes no filter: {error}"

    def refuse() -> None:
        raise DeviceError(reason)

    return refuse


def _build_filter() -> Callable[[], None]:
    import pyseccomp  # noqa: PLC0415 - the processes that lock nothing down need no libseccomp

    calls = pyseccomp.SyscallFilter(pyseccomp.KILL_PROCESS)
    calls.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)  # e.g. 32-bit calls on a 64-bit machine
    not_executable = pyseccomp.Arg(2, pyseccomp.MASKED_EQ, mmap.PROT_EXEC, 0)
    for names, conditions in ((SYSTEM_CALLS, ()), (MAPPING_CALLS, (not_executable,))):
        for name in names:
            number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
            if number != _UNKNOWN_CALL:
                calls.add_rule(pyseccomp.ALLOW, number, *conditions)
    load: Callable[[], None] = calls.load
    return load


def main() -> None:
    """Lock this process down as a worker is, and say what is in force, as JSON, on standard output."""
    prepare()
    report = lock_down(memory_bytes=0, cpu_seconds=10)
    os.write(1, msgspec.json.encode(report))
    os._exit(0)  # an orderly end would make calls that are not allowed any more


if __name__ == "__main__":
    main()
