"""A model's process on another machine, or with a defect, as its first argument says."""

import ctypes
import os
import resource
import sys
import threading
from typing import NoReturn

from appliance.errors import DeviceError
from appliance.inference import lockdown, service
from appliance.ipc import lockdown as measures
from appliance.ipc.calls import Calls
from appliance.ipc.report import Lockdown

ORDINARY_USER = 12345
PR_SET_DUMPABLE = 4


def strict() -> None:
    """Whatever looks for a file when it is too late is ended, rather than going on without."""
    lockdown.REFUSED_CALLS = ()


def ordinary_user() -> None:
    """Who may open no file of root's; that it could not have read the model is another matter."""

    def lock_down(model_bytes: int, delegate: str) -> Lockdown:
        os.setgroups([])
        os.setresgid(ORDINARY_USER, ORDINARY_USER, ORDINARY_USER)
        os.setresuid(ORDINARY_USER, ORDINARY_USER, ORDINARY_USER)
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # as it is in a process that was started so
        return lockdown.lock_down(model_bytes, delegate)

    service.lock_down = lock_down
    strict()


def without_libseccomp() -> None:
    def refuse() -> None:
        raise DeviceError("no libseccomp")

    def prepare(calls: Calls) -> object:
        return refuse

    measures.prepare = prepare


def without_limits() -> None:
    def setrlimit(which: int, limits: object) -> NoReturn:
        raise ValueError("not allowed")

    resource.setrlimit = setrlimit


def with_a_thread() -> None:
    threading.Thread(target=threading.Event().wait, daemon=True).start()


def aborts() -> None:
    service.open_model = lambda *_: os.abort()


def has_a_defect() -> None:
    def open_model(*_: object) -> NoReturn:
        raise IndexError("list index out of range")

    service.open_model = open_model


def has_no_memory() -> None:
    def read_contents(_: object) -> NoReturn:
        raise MemoryError

    service.read_contents = read_contents


VARIANTS = (
    strict,
    ordinary_user,
    without_libseccomp,
    without_limits,
    with_a_thread,
    aborts,
    has_a_defect,
    has_no_memory,
)

if __name__ == "__main__":
    {variant.__name__: variant for variant in VARIANTS}[sys.argv[1]]()
    raise SystemExit(service.main(sys.argv[2:]))
