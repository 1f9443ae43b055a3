"""What every child process of the appliance does first."""

import contextlib
import ctypes
import os
import signal
from pathlib import Path

from appliance.errors import DeviceError

KEPT_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")
"""What a process that runs what strangers wrote inherits of the environment: nothing that could hold a secret."""
_OOM_SCORE = "500"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def kept_environment() -> dict[str, str]:
    """That part of this process's environment."""
    return {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}


def spare_the_parent() -> None:
    """Where the device's memory runs out, have the kernel kill this process before the one that started it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)


def die_with_parent(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel signal this process when the thread that started it ends.

    ``parent`` is the process that should still be there: where it is not any more, this process ends at once,
    because the kernel would never say so again.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, by, 0, 0, 0):
        raise DeviceError(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        raise SystemExit("the process that started this one is gone")
