"""What is left to a worker once it is locked down; :mod:`appliance.ipc.lockdown` says how, and in which order.

``python -m appliance.sandbox.lockdown`` locks itself down and prints what is in force, as JSON.
"""

import contextlib
import os
import resource

import msgspec

from appliance.errors import DeviceError
from appliance.ipc import calls, lockdown
from appliance.ipc.calls import MAPPING_CALLS, NOT_EXECUTABLE, Calls, Rule
from appliance.ipc.lockdown import NOBODY, Profile
from appliance.ipc.report import Lockdown

__all__ = ["MAPPING_CALLS", "NOBODY", "lock_down", "prepare"]

MARGIN_BYTES = 96 << 20
"""Address space on top of what the process has and of the guest's memory: the largest message in flight (an inference
of 12 MiB of tensors is there three times over), what wasm3 leaks before the worker is replaced, its code pages."""
STACK_BYTES = 64 << 20
"""wasm3 recurses on the C stack."""

SYSTEM_CALLS = (
    *("sendto", "recvfrom", "send", "recv"),  # the socket; no sendmsg and recvmsg: descriptors cannot pass
    "write",  # wasm3 prints a backtrace for a trap, into a socket that the worker itself receives from
    *("brk", "munmap", "mremap", "madvise"),  # memory; mmap is below
    *("futex", "futex_time64"),  # the interpreter's locks
    *("clock_gettime", "clock_gettime64"),  # the CPU clock, and the others where the vDSO lacks them
    *("rt_sigreturn", "restart_syscall"),  # after a stop and a continue
    "close",  # the ring's descriptor, at the end
    *("exit", "exit_group"),
)
"""All that a running worker may call, by the names of every architecture; one that has not such a call skips it."""
CALLS = Calls((Rule(SYSTEM_CALLS), Rule(MAPPING_CALLS, when=NOT_EXECUTABLE)))
"""MAPPING_CALLS are allowed, too, unless the memory were executable: what a guest writes never becomes machine code."""
COMPILED_CALLS = ("sigaltstack",)  # wasmtime makes it once, as it begins to run a guest
LOADING_CALLS = ("mprotect", "membarrier", "prctl", "seccomp")
LOADING = Calls((Rule((*SYSTEM_CALLS, *COMPILED_CALLS, *LOADING_CALLS)), Rule(MAPPING_CALLS, when=NOT_EXECUTABLE)))
"""Of a worker with compiled code until :func:`forbid_code`: it makes that code executable, and then takes more away."""
COMPILED = Calls(
    (Rule((*SYSTEM_CALLS, *COMPILED_CALLS)), Rule((*MAPPING_CALLS, "mprotect"), when=NOT_EXECUTABLE)),
)
"""Of the same worker afterwards."""


def lock_down(memory_bytes: int, cpu_seconds: int, allowed: Calls = CALLS) -> Lockdown:
    """Leave a worker what it needs to run a guest of ``memory_bytes`` of linear memory, and no more.

    Everything must have been imported and mapped, and :func:`prepare` have been called: from here on no file can be
    opened, and a system call that is not ``allowed`` ends the process with SIGSYS. DeviceError where even the
    limits cannot be set.
    """
    limits = (
        (resource.RLIMIT_STACK, STACK_BYTES),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    )
    return lockdown.lock_down(Profile(limits, allowed, memory_bytes=memory_bytes + MARGIN_BYTES))


def forbid_code() -> None:
    """From here on nothing becomes executable, in a worker that was locked down with LOADING to load its code.

    A second filter on top of the first: the kernel goes by the stricter one.
    """
    with contextlib.suppress(DeviceError):  # it was said before that there is none
        calls.prepare(COMPILED)()


def prepare() -> None:
    """Make the filter of system calls. Once, before forking: a worker can open no library."""
    calls.prepare(CALLS)


def main() -> None:
    """Lock this process down as a worker is, and say what is in force, as JSON, on standard output."""
    prepare()
    report = lock_down(memory_bytes=0, cpu_seconds=10)
    os.write(1, msgspec.json.encode(report))
    os._exit(0)  # an orderly end would make calls that are not allowed any more


if __name__ == "__main__":
    main()
