"""Modules with the interface of picamera2 (version 0.3.x) that a test puts in place of the real ones."""

import threading
import time
from collections.abc import Callable
from enum import Enum
from types import ModuleType
from typing import Any

import numpy as np
import simplejpeg


class Quality(Enum):
    VERY_LOW = 0
    LOW = 1
    MEDIUM = 2
    HIGH = 3
    VERY_HIGH = 4


class MJPEGEncoder:
    def __init__(self, bitrate: int | None = None) -> None:
        self.bitrate = bitrate
        self.firsttimestamp: int | None = None


class Output:
    def __init__(self, pts: object = None) -> None:
        self.recording = False

    def outputframe(
        self,
        frame: bytes,
        keyframe: bool = True,
        timestamp: int | None = None,
        packet: object = None,
        audio: Any = False,
    ) -> None:
        """Overridden by whoever wants the pictures."""


class Picamera2:
    """A camera that takes a picture whenever :attr:`pacer` (a wait until the next, False: stop) lets it."""

    attached = 1
    opened: "list[Picamera2]" = []

    def __init__(self, camera_num: int = 0) -> None:
        if camera_num >= self.attached:
            raise IndexError("list index out of range")
        self.camera_num = camera_num
        self.config: dict[str, Any] = {}
        self.quality: Quality | None = None
        self.stopped = threading.Event()
        self.paused = False
        self.closed = False
        self.opened.append(self)

    def create_video_configuration(
        self,
        main: dict[str, Any] = {},  # noqa: B006 - as picamera2 has it
        lores: dict[str, Any] | None = None,
        buffer_count: int = 6,
        controls: dict[str, Any] = {},  # noqa: B006
    ) -> dict[str, Any]:
        return {"main": main, "lores": lores, "buffer_count": buffer_count, "controls": controls}

    def configure(self, config: dict[str, Any]) -> None:
        self.config = config

    def camera_configuration(self) -> dict[str, Any]:
        return self.config

    def start_recording(
        self,
        encoder: MJPEGEncoder,
        output: Output,
        pts: object = None,
        config: object = None,
        quality: Quality | None = None,
        name: str | None = None,
    ) -> None:
        assert isinstance(output, Output)
        self.quality = quality
        self._thread = threading.Thread(target=self._record, args=(encoder, output.outputframe))
        self._thread.start()

    def _record(self, encoder: MJPEGEncoder, emit: Callable[..., None]) -> None:
        width, height = self.config["main"]["size"]
        number = 0
        while not self.stopped.wait(0.005):
            if self.paused:
                continue
            now_us = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
            if encoder.firsttimestamp is None:
                encoder.firsttimestamp = now_us
            jpeg = simplejpeg.encode_jpeg(np.full((height, width, 3), number % 256, np.uint8))
            emit(jpeg, True, now_us - encoder.firsttimestamp, None, False)
            number += 1

    def stop_recording(self) -> None:
        self.stopped.set()
        self._thread.join()

    def close(self) -> None:
        self.closed = True


def modules() -> dict[str, ModuleType]:
    """What to put into ``sys.modules``."""
    names: dict[str, dict[str, object]] = {
        "picamera2": {"Picamera2": Picamera2},
        "picamera2.encoders": {"MJPEGEncoder": MJPEGEncoder, "Quality": Quality},
        "picamera2.outputs": {"Output": Output},
    }
    made = {}
    for name, members in names.items():
        made[name] = ModuleType(name)
        vars(made[name]).update(members)
    return made
