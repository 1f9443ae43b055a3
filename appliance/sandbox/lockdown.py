"""What a process may still do, taken away from inside, for good.

Namespaces, Landlock and seccomp belong into :func:`lock_down`, after the limits: setting up Landlock needs a
descriptor, and so must come before RLIMIT_NOFILE.
"""

import ctypes
import os
import resource
import signal
from pathlib import Path

MARGIN_BYTES = 96 << 20
"""Address space on top of what the process has and of the guest's memory: the largest message in flight (an inference
of 12 MiB of tensors is there three times over), what wasm3 leaks before the worker is replaced, its code pages."""
STACK_BYTES = 64 << 20
"""wasm3 recurses on the C stack."""

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int) -> None:
    """SIGKILL this process when its parent, ``parent``, ends; at once where it has ended already."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def lock_down(memory_bytes: int, cpu_seconds: int) -> None:
    """Leave a worker what it needs to run a guest of ``memory_bytes`` of linear memory, and no more.

    Everything must have been imported and mapped: from here on, no file can be opened or written.
    """
    _limit(resource.RLIMIT_STACK, STACK_BYTES)
    _limit(resource.RLIMIT_AS, _address_space() + memory_bytes + MARGIN_BYTES)
    _limit(resource.RLIMIT_CPU, cpu_seconds)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_NOFILE, 0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _limit(which: int, value: int) -> None:
    """Soft and hard limit: never above the hard limit that is there."""
    hard = resource.getrlimit(which)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def _address_space() -> int:
    """Bytes of address space this process has mapped now."""
    with Path("/proc/self/statm").open("rb") as statm:  # in bytes: a codec would be imported in every worker
        return int(statm.read().split()[0]) * resource.getpagesize()


def _prctl(option: int, argument: int) -> None:
    if _libc.prctl(option, argument, 0, 0, 0):
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}): {os.strerror(error)}")
