"""A process that ends by SIGKILL at one of the steps it makes on the disk, in whatever thread and library that is.

Steps are what changes a directory: Python's own audit events of opening to write, renaming, linking, making and
removing, and each ``fsync``. The process is a fork of this one, which has imported everything already.
"""

import json
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CHANGING = frozenset({"os.rename", "os.link", "os.symlink", "os.mkdir", "os.remove", "os.rmdir", "os.chmod"})
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_MOST_BYTES = 1 << 16
"""What a pipe holds."""


@dataclass(frozen=True)
class Ended:
    """How a process ended: with a value, or killed."""

    killed: bool
    value: Any = None


class Steps:
    """Counts the steps in ``directory``; ``at`` one of them, this process is killed, after ``before_kill``."""

    def __init__(self, directory: Path, at: int | None = None, before_kill: Callable[[], None] = lambda: None) -> None:
        self._directory = str(directory)
        self._at = at
        self._before_kill = before_kill
        self._within = False
        self.count = 0

    def watch(self) -> None:
        """From now on, for as long as this process lives: an audit hook is there to stay."""
        real = os.fsync

        def fsync(handle: int) -> None:
            self._step(handle)
            real(handle)

        os.fsync = fsync
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _CHANGING or (event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING):
            directory = next((each for each in arguments[1:] if isinstance(each, int) and each > 0), None)
            self._step(arguments[0], directory if event in {"os.remove", "os.rmdir"} else None)

    def _step(self, what: object, directory: int | None = None) -> None:
        if self._within or not self._is_ours(what, directory):
            return
        if self.count == self._at:
            self._within = True
            self._before_kill()
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1

    def _is_ours(self, what: object, directory: int | None) -> bool:
        handle = what if isinstance(what, int) else directory
        if handle is not None:
            path = str(Path(f"/proc/self/fd/{handle}").readlink())
        elif isinstance(what, str | bytes | os.PathLike):
            path = os.fsdecode(what)
        else:
            return False
        return path.startswith(self._directory)


def in_child(work: Callable[[], Any]) -> Ended:
    """What it returns (as JSON), from a fork of this process; AssertionError with its traceback where it fails."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of other tests: the child needs none of them
        child = os.fork()
    if child == 0:
        try:
            answer = json.dumps({"value": work()})
        except BaseException:  # noqa: BLE001 - told to the parent, which raises
            answer = json.dumps({"failed": traceback.format_exc()})
        os.write(write, answer.encode()[:_MOST_BYTES])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == -signal.SIGKILL:
        return Ended(killed=True)
    answer = json.loads(data)
    if "failed" in answer:
        raise AssertionError(answer["failed"])
    return Ended(killed=False, value=answer["value"])
