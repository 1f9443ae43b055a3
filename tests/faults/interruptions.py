"""Code that is interrupted at any of its steps: by a power cut or SIGKILL, or because the disk fails.

``steps_of`` runs a piece of work and counts its lines; ``interrupted`` runs it again and ends it at one of them. What
ends is dead: nothing that would clean up can touch the disk any more.
"""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

PACKAGE = Path(__file__).parents[2] / "appliance"
TRACED = (*(str(PACKAGE / part) for part in ("deploy", "device")), "/shutil.py")
"""Where steps are counted."""
CHANGING = ("rename", "replace", "link", "mkdir", "unlink", "remove", "rmdir", "fsync", "chmod", "fchmod")
"""Calls of ``os`` that change the disk."""


class Killed(BaseException):
    """Here the process ended."""


def steps_of(work: Callable[[], object]) -> int:
    """How many steps a piece of work has."""
    with _traced(None, lambda: None) as counted:
        work()
    return counted[0]


def interrupted(work: Callable[[], object], step: int, on_kill: Callable[[], None] = lambda: None) -> bool:
    """Run it up to a step. ``on_kill`` is called there. False where it was over before."""
    dead = False

    def kill() -> None:
        nonlocal dead
        dead = True
        on_kill()

    def unless_dead(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if dead:
                raise Killed
            return real(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGING:
            patch.setattr(os, name, unless_dead(name))
        with _traced(step, kill), suppress(Killed):
            work()
    return dead


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
def _traced(step: int | None, kill: Callable[[], None]) -> Iterator[list[int]]:
    count = [0]

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        if not any(part in frame.f_code.co_filename for part in TRACED):
            return None
        if event == "line":
            if count[0] == step:
                sys.settrace(None)
                kill()
                raise Killed
            count[0] += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield count
    finally:
        sys.settrace(before)
