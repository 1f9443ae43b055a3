"""What a process may still do, taken away from inside, for good.

Limits that every Linux has come first, and without them nothing hostile is run. Then come measures that a kernel, a
container or an ordinary user may not have: each is tried, and :class:`Lockdown` tells what came of it. They overlap on
purpose: where one is missing, others deny most of the same. What each kind of process keeps is a :class:`Profile`.
"""

import ctypes
import os
import resource
import stat
from collections.abc import Callable
from ctypes import c_int, c_int32, c_long, c_size_t, c_uint32, c_uint64, c_ulong
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import DeviceError
from appliance.ipc.calls import Calls, prepare
from appliance.ipc.child import die_with_parent
from appliance.ipc.report import MAX_REASON, Lockdown

NOBODY = 65534
"""User and group of what root has started."""

_PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h
_CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWNET = 0x0800_0000, 0x1000_0000, 0x4000_0000  # linux/sched.h
_CAPABILITY_VERSION_3 = 0x2008_0522  # linux/capability.h
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # the same numbers on every architecture
_LANDLOCK_VERSION, _LANDLOCK_PATH_BENEATH = 1, 1
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
"""ABI of Landlock -> how many rights on files it knows (linux/landlock.h): bits from 0 on."""
_WRITE_FILE, _READ_FILE, _READ_DIRECTORY, _IOCTL_DEVICE = 1 << 1, 1 << 2, 1 << 3, 1 << 15
_NETWORK_ABI, _NETWORK_RIGHTS = 4, 0b11
_SCOPES_ABI, _SCOPES = 6, 0b11

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = (c_int, c_ulong, c_ulong, c_ulong, c_ulong)


@dataclass(frozen=True, slots=True)
class Profile:
    """What a kind of process keeps; all else is taken away."""

    limits: tuple[tuple[int, int], ...]
    """``resource.RLIMIT_*`` and the most there may be, in its unit."""
    calls: Calls
    """The system calls it may make."""
    memory_bytes: int | None = None
    """Address space on top of what the process has mapped; None: no bound."""
    open_files: int = 0
    """RLIMIT_NOFILE: what is open stays open."""
    keeps_user: bool = False
    """Do not become nobody, where root has started the process."""
    keeps_network: str = ""
    """Why the process stays in the network and System V namespaces of the box; empty: it leaves them."""
    readable: tuple[str, ...] = ()
    """Files and directories, with all beneath them, that may be opened to be read. What does not exist is skipped."""
    writable: tuple[str, ...] = ()
    """Those that may be written and controlled (ioctl), too."""


class _RulesetAttr(ctypes.Structure):
    """``landlock_ruleset_attr``; a kernel that knows fewer fields accepts more of them while they are 0."""

    _fields_ = (("files", c_uint64), ("network", c_uint64), ("scoped", c_uint64))


class _PathBeneath(ctypes.Structure):
    """``landlock_path_beneath_attr``"""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("rights", c_uint64), ("fd", c_int32))


def lock_down(profile: Profile) -> Lockdown:
    """Leave this process what ``profile`` says, and no more.

    It must have one thread: most measures are of the thread that takes them, and of those that it starts. DeviceError
    where it has more, and where even the limits cannot be set.
    """
    parent = os.getppid()
    filter_calls = prepare(profile.calls)
    _limit_all(profile)
    report = Lockdown()
    _try(report, "network namespace", lambda: _leave_namespaces(profile.keeps_network))
    if not profile.keeps_user:
        _try(report, "uid", _become_nobody)
    _try(report, "capabilities", _drop_capabilities)
    die_with_parent(parent)  # again: the kernel forgets it when the user changes
    _try(report, "landlock", lambda: _close_files(profile))
    _limit(resource.RLIMIT_NOFILE, profile.open_files)  # Landlock needed one
    _try(report, "seccomp", lambda: _filter_calls(filter_calls))
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


def _limit_all(profile: Profile) -> None:
    try:
        threads = len(os.listdir(b"/proc/self/task"))  # noqa: PTH208 - in bytes: a codec would be imported in every worker
        mapped = int(Path("/proc/self/statm").read_bytes().split()[0]) * resource.getpagesize()
        _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    except OSError as error:
        raise DeviceError(f"the process cannot be locked down: {error}") from error
    if threads > 1:
        raise DeviceError(f"{threads} threads run already, and all but one would keep what is taken away")
    if profile.memory_bytes is not None:
        _limit(resource.RLIMIT_AS, mapped + profile.memory_bytes)
    for which, value in profile.limits:
        _limit(which, value)


def _limit(which: int, value: int) -> None:
    """Soft and hard limit: never above the hard limit that is there."""
    grace = 1 if which == resource.RLIMIT_CPU else 0  # SIGXCPU comes at the soft limit alone, and tells why it ended
    hard = resource.getrlimit(which)[1]
    soft, most = (limit if hard == resource.RLIM_INFINITY else min(limit, hard) for limit in (value, value + grace))
    try:
        resource.setrlimit(which, (soft, most))
    except (OSError, ValueError) as error:
        raise DeviceError(f"the process cannot be limited (resource {which} to {value}): {error}") from error


# --- measures, in order -------------------------------------------------------------------------------------


def _leave_namespaces(why_not: str) -> str:
    """No network but a loopback that is down, no System V memory of others."""
    if why_not:
        raise DeviceError(why_not)
    ours = 0 if os.geteuid() == 0 else _CLONE_NEWUSER  # an ordinary user may, within a user namespace of its own
    _checked(_libc.unshare(c_int(ours | _CLONE_NEWNET | _CLONE_NEWIPC)))
    return "network namespace"


def _become_nobody() -> str:
    """Own no file of the box, and no process but those that are locked down."""
    if os.geteuid() != 0:
        raise DeviceError("not root")
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    return f"uid {NOBODY}"


def _drop_capabilities() -> str:
    """Those of root where it has not become nobody, or those that came with the user namespace."""
    header = (c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    none = (c_uint32 * 6)()  # two words each of effective, permitted and inheritable
    _checked(_libc.capset(header, none))
    return "no capabilities"


def _close_files(profile: Profile) -> str:
    """Landlock: no path but the profile's can be opened, none run, no port bound, nobody outside signalled."""
    abi = _checked(_libc.syscall(c_long(_LANDLOCK_CREATE), None, c_size_t(0), c_uint32(_LANDLOCK_VERSION)))
    rights = _RulesetAttr(
        files=(1 << max(count for since, count in _FILE_RIGHTS.items() if since <= abi)) - 1,
        network=_NETWORK_RIGHTS if abi >= _NETWORK_ABI else 0,
        scoped=_SCOPES if abi >= _SCOPES_ABI else 0,
    )
    size = c_size_t(ctypes.sizeof(rights))
    ruleset = _checked(_libc.syscall(c_long(_LANDLOCK_CREATE), ctypes.byref(rights), size, c_uint32(0)))
    try:
        for path in profile.readable:
            _open_path(ruleset, path, (_READ_FILE | _READ_DIRECTORY) & rights.files)
        for path in profile.writable:
            _open_path(ruleset, path, (_WRITE_FILE | _READ_FILE | _READ_DIRECTORY | _IOCTL_DEVICE) & rights.files)
        _checked(_libc.syscall(c_long(_LANDLOCK_RESTRICT), c_int(ruleset), c_uint32(0)))
    finally:
        os.close(ruleset)
    return f"landlock {abi}"


def _open_path(ruleset: int, path: str, rights: int) -> None:
    """An exception for ``path`` and all beneath it."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= ~_READ_DIRECTORY
        beneath = ctypes.byref(_PathBeneath(rights, fd))
        arguments = (c_int(ruleset), c_int(_LANDLOCK_PATH_BENEATH), beneath, c_uint32(0))
        _checked(_libc.syscall(c_long(_LANDLOCK_ADD), *arguments))
    finally:
        os.close(fd)


def _filter_calls(put_in_force: Callable[[], None]) -> str:
    """SIGSYS to whoever calls what the process does not need."""
    put_in_force()
    return "seccomp"


def _checked(result: int) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
