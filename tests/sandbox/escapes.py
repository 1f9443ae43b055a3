"""Runs ``escape_attempts.py``: what is tried, by whom, and what denies it."""

import errno
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from appliance.ipc.child import kept_environment

ATTEMPTS = Path(__file__).parent / "escape_attempts.py"
_AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="another user can be had by root alone")
USERS = [pytest.param("", id="as-it-is"), pytest.param("12345", id="ordinary-user", marks=_AS_ROOT)]
HARMLESS = (
    "open",
    "write",
    "environ",
    "environ of the parent",
    "stat",
    "unlink",
    "socket",
    "unix socket",
    "connect",
    "pass a descriptor",
    "fork",
    "execve",
    "ptrace",
    "kill",
    "kill a thread",
    "memfd_create",
    "mprotect",
    "mmap",
    "setrlimit",
    "user namespace",
)
HARMFUL = ("mount", "bpf", "io_uring_setup", "become root")
SECOND_LINE = {
    "open": {errno.EMFILE, errno.EACCES},
    "write": {errno.EMFILE, errno.EACCES},
    "environ": {errno.EMFILE, errno.EACCES},
    "environ of the parent": {errno.EMFILE, errno.EACCES},
    "socket": {errno.EMFILE},
    "unix socket": {errno.EMFILE},
    "memfd_create": {errno.EMFILE},
    "io_uring_setup": {errno.EMFILE, errno.EPERM},
    "bpf": {errno.EMFILE, errno.EPERM},
    "mount": {errno.EPERM, errno.EACCES},
    "become root": {errno.EPERM, errno.EINVAL},
}
"""What denies it where no system call is filtered, on any kernel that runs this software."""
WITH_LANDLOCK = {"unlink": {errno.EACCES}, "execve": {errno.EACCES, errno.EAGAIN}, "ptrace": {errno.EPERM}}


def run(*command: str) -> str:
    """A program of ours, in the environment of a zygote; its standard output."""
    return subprocess.run(
        [sys.executable, *command], stdout=subprocess.PIPE, env=kept_environment(), check=True, text=True, timeout=60
    ).stdout


@cache
def attempts(lock: str, user: str = "", who: str = "worker") -> dict[str, int]:
    """By attempt: 0 where it succeeded, an errno, or minus the signal that killed it."""
    outcomes: dict[str, int] = json.loads(run(str(ATTEMPTS), who, lock, *filter(None, [user])))
    return outcomes
