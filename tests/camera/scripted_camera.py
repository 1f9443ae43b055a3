"""A camera that does what a test's script says, registered like any other backend."""

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from appliance.camera.camera import Camera, Picture
from appliance.config import CameraConfig

HANG = "hang"
"""A call that does not return until the script is let go."""


@dataclass
class Wait:
    """Go on when the test says so."""

    event: threading.Event


@dataclass
class Lose:
    """The camera itself loses pictures."""

    pictures: int


Step = Picture | BaseException | str | None | threading.Event | Wait | Lose


def picture(number: int, pts: float | None = None) -> Picture:
    """A tiny picture that carries its number."""
    return Picture(1, 1, time.time_ns(), jpeg=bytes([number]), pts=pts)


class Script:
    """What each attempt's calls do: the first step is what opening does, the others are reads.

    A picture is returned, an error raised, None ends, HANG blocks until :attr:`let_go` is set; an Event is
    set on the way to the next step.
    """

    def __init__(self, *attempts: Sequence[Step], live: bool = True) -> None:
        self.attempts = deque(deque(steps) for steps in attempts)
        self.live = live
        self.let_go = threading.Event()
        self.opening = threading.Event()
        self.opened: list[ScriptedCamera] = []
        self.closed = threading.Semaphore(0)


SCRIPTS: dict[str, Script] = {}


class ScriptedCamera(Camera):
    description = "scripted"

    def __init__(self, script: Script) -> None:
        self.live = script.live
        self._script = script
        self._steps = script.attempts.popleft()
        script.opening.set()
        if self._steps and isinstance(self._steps[0], BaseException | str):
            self._step()
        script.opened.append(self)

    def read(self) -> Picture | None:
        return self._step()

    def close(self) -> None:
        self._script.closed.release()

    def _step(self) -> Picture | None:
        step = self._steps.popleft()
        while isinstance(step, threading.Event | Wait | Lose):
            if isinstance(step, Wait):
                assert step.event.wait(30)
            elif isinstance(step, Lose):
                self.lost += step.pictures
            else:
                step.set()
            step = self._steps.popleft()
        if isinstance(step, str):
            assert self._script.let_go.wait(30)
            raise OSError("the driver came back")
        if isinstance(step, BaseException):
            raise step
        return step


def open_scripted(config: CameraConfig) -> ScriptedCamera:
    """Open ``scripted:NAME``."""
    return ScriptedCamera(SCRIPTS[config.url.partition(":")[2]])
