"""Code that is interrupted at any of its steps: by a power cut or SIGKILL, or because the disk fails.

``steps_of`` runs a piece of work and counts its lines; ``interrupted`` runs it in a process of its own, which ends at
one of them. Nothing cleans up there.
"""

import errno
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

PACKAGE = Path(__file__).parents[2] / "appliance"
TRACED = (*(str(PACKAGE / part) for part in ("deploy", "device")), "/shutil.py", "/tuf/ngclient/updater.py")
"""Where steps are counted."""
CHANGING = ("rename", "replace", "link", "mkdir", "unlink", "remove", "rmdir", "fsync", "chmod", "fchmod")
"""Calls of ``os`` that change the disk."""
_KILLED = 99
_FAILED = 98


def steps_of(work: Callable[[], object]) -> int:
    """How many steps a piece of work has."""
    count = 0

    def counted() -> None:
        nonlocal count
        count += 1

    with _at_each_step(counted):
        work()
    return count


def interrupted(work: Callable[[], object], step: int, on_kill: Callable[[], None] = lambda: None) -> bool:
    """Run it up to a step in a fork of this process. ``on_kill`` is called there. False where it was over before."""
    count = 0

    def perhaps() -> None:
        nonlocal count
        if count == step:
            sys.settrace(None)
            on_kill()
            os._exit(_KILLED)
        count += 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of other tests: this child needs none of them
        child = os.fork()
    if child == 0:
        status = _FAILED
        try:
            with _at_each_step(perhaps):
                work()
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in {0, _KILLED}, f"the work failed before step {step}"
    return status == _KILLED


def failing_disks(work: Callable[[], object], prepare: Callable[[], None]) -> Iterator[BaseException | None]:
    """Run it again and again, each time with another call failing, until none is left; how each run ended."""
    number = 0
    failed = True
    while failed:
        prepare()
        number += 1
        failed = False
        calls = 0

        def or_fail(name: str) -> Callable[..., Any]:
            real = getattr(os, name)

            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls, failed
                calls += 1
                if calls == number:  # noqa: B023 - used within this turn
                    failed = True
                    raise OSError(errno.EIO, f"{name} fails")
                return real(*args, **kwargs)

            return call

        outcome: BaseException | None = None
        with pytest.MonkeyPatch.context() as patch:
            for name in CHANGING:
                patch.setattr(os, name, or_fail(name))
            try:
                work()
            except Exception as error:  # noqa: BLE001 - handed to the test, which judges it
                outcome = error
        yield outcome


@contextmanager
def _at_each_step(call: Callable[[], None]) -> Iterator[None]:
    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        if not any(part in frame.f_code.co_filename for part in TRACED):
            return None
        if event == "line":
            call()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
