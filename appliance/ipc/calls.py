"""Filters of system calls, as values; libseccomp makes them for the architecture they run on."""

import errno
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from appliance.errors import DeviceError

ALLOWED = 0
"""Verdict of a rule that lets a call pass; any other is the errno that the call fails with."""
MAPPING_CALLS = ("mmap", "mmap2")
_UNKNOWN_CALL = -1
_CLONE_THREAD = 0x0001_0000  # linux/sched.h


@dataclass(frozen=True, slots=True)
class Argument:
    """A condition on one argument of a call: its bits within ``mask`` are ``value``, or it is not ``value`` at all."""

    number: int
    value: int
    mask: int = 0xFFFF_FFFF
    differs: bool = False
    """True: the whole argument is another than ``value``; ``mask`` is not looked at."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A verdict on some calls, by the names of every architecture; one that has not such a call skips it."""

    names: tuple[str, ...]
    verdict: int = ALLOWED
    when: Argument | None = None


@dataclass(frozen=True, slots=True)
class Calls:
    """What becomes of each system call of a process."""

    rules: tuple[Rule, ...]
    others: bool = False
    """Whether calls without a rule are allowed; else they end the process with SIGSYS."""


THREADS = (
    Rule(("clone3",), verdict=errno.ENOSYS),
    Rule(("clone",), when=Argument(0, value=_CLONE_THREAD, mask=_CLONE_THREAD)),
)
"""Threads may be started, but no processes: fork is clone without that flag. The arguments of clone3 lie in memory,
where no filter can look; without it, libc falls back to clone."""
NO_PROCESSES = (
    Rule(("clone3",), verdict=errno.ENOSYS),
    Rule(("clone",), verdict=errno.EPERM, when=Argument(0, value=0, mask=_CLONE_THREAD)),
)
"""The same where other calls are allowed."""
NOT_EXECUTABLE = Argument(2, value=0, mask=mmap.PROT_EXEC)
"""Of the mapping calls: what is written to memory never becomes machine code."""


@cache
def prepare(calls: Calls) -> Callable[[], None]:
    """What puts the filter in force, for good; it raises DeviceError where there can be none.

    Finding libseccomp runs a program and opens files: a process that is to be forked, or to do without files, calls
    this before.
    """
    try:
        return _build(calls)
    except (ImportError, RuntimeError, AttributeError) as error:  # the package is absent, the library is, or is too old
        reason = f"libseccomp cannot be loaded ({error}): apt-get install libseccomp2"
    except OSError as error:
        reason = f"libseccomp makes no filter: {error}"

    def refuse() -> None:
        raise DeviceError(reason)

    return refuse


def _build(calls: Calls) -> Callable[[], None]:
    import pyseccomp  # noqa: PLC0415 - the processes that lock nothing down need no libseccomp

    built = pyseccomp.SyscallFilter(pyseccomp.ALLOW if calls.others else pyseccomp.KILL_PROCESS)
    built.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)  # e.g. 32-bit calls on a 64-bit machine
    for rule in calls.rules:
        verdict = pyseccomp.ALLOW if rule.verdict == ALLOWED else pyseccomp.ERRNO(rule.verdict)
        conditions = []
        if (when := rule.when) is not None and when.differs:
            conditions = [pyseccomp.Arg(when.number, pyseccomp.NE, when.value)]
        elif when is not None:
            conditions = [pyseccomp.Arg(when.number, pyseccomp.MASKED_EQ, when.mask, when.value)]
        for name in rule.names:
            number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
            if number != _UNKNOWN_CALL:
                built.add_rule(verdict, number, *conditions)
    load: Callable[[], None] = built.load
    return load
