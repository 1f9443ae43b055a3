"""The Raspberry Pi's own camera, with the hardware's Motion JPEG encoder (a Pi 5 encodes in software).

Needs the Debian package ``python3-picamera2`` of Raspberry Pi's apt repository and a virtual environment that
sees the system's packages; nothing of it is on PyPI in a form that works. Tests run this module against a
stand-in with picamera2's interface: a real camera is only on the device.
"""

import importlib
import logging
import threading
import time
from typing import Annotated, Any

import msgspec

from appliance.camera.camera import Camera, Picture, url_options
from appliance.config import CameraConfig
from appliance.errors import DeviceError

DEFAULT_WIDTH, DEFAULT_HEIGHT = 1280, 720
DEFAULT_FPS = 30.0
LOW_WIDTH = 320
"""Of the second, low-resolution stream; its height follows from the picture's proportions."""
BUFFERS = 4
MAX_AGE_NS = 2_000_000_000
"""An older picture than that has a timestamp of another clock, which is then not used."""

_UNAVAILABLE = (RuntimeError, IndexError, OSError, ValueError)
"""What picamera2 and libcamera raise where there is no camera, or another program has it."""

log = logging.getLogger(__name__)


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may follow ``picamera2:?``."""

    camera: Annotated[int, msgspec.Meta(ge=0, le=7)] = 0
    """Which of several, in the order of ``rpicam-hello --list-cameras``."""


class Picamera2Camera(Camera):
    """The newest picture the encoder made; one that is not read before the next counts as lost."""

    live = True

    def __init__(self, config: CameraConfig, picamera2: Any, encoders: Any, outputs: Any) -> None:
        self._config = config
        self._arrived = threading.Condition()
        self._newest: tuple[bytes, int] | None = None
        width, height = _even_size(config)
        fps = config.fps or DEFAULT_FPS
        self._patience = max(config.stall_seconds, 3 / fps)
        try:
            self._device = picamera2.Picamera2(url_options(config, Options).camera)
        except _UNAVAILABLE as error:
            raise self._gone(f"{error}; is it connected (`rpicam-hello --list-cameras`), and not in use?") from error
        try:
            self._device.configure(self._configuration(width, height, fps))
            self.width, self.height = self._device.camera_configuration()["main"]["size"]
            self._encoder = encoders.MJPEGEncoder()
            output = _output(outputs.Output, self._encoded)
            self._device.start_recording(self._encoder, output, quality=_quality(encoders.Quality, config.quality))
        except _UNAVAILABLE as error:
            self._device.close()
            raise self._gone(str(error)) from error
        self.description = f"{config.url} {self.width}x{self.height}, {fps:g} fps, Motion JPEG"

    def read(self) -> Picture:
        with self._arrived:
            if not self._arrived.wait_for(lambda: self._newest is not None, self._patience):
                raise self._gone(f"no picture for {self._patience:g} s")
            assert self._newest is not None
            (jpeg, captured_ns), self._newest = self._newest, None
        return Picture(self.width, self.height, captured_ns, jpeg=jpeg)

    def close(self) -> None:
        device, self._device = self._device, None
        if device is None:
            return
        try:
            device.stop_recording()
            device.close()
        except _UNAVAILABLE as error:  # a camera that is gone cannot be stopped either
            log.warning("event=camera_not_closed camera=%s error=%s", self._config.name, error)

    def _configuration(self, width: int, height: int, fps: float) -> Any:
        low = min(LOW_WIDTH, width)
        frame_us = round(1e6 / fps)
        return self._device.create_video_configuration(
            main={"size": (width, height), "format": "YUV420"},
            lores={"size": (low, max(2, 2 * round(low * height / width / 2))), "format": "YUV420"},
            controls={"FrameDurationLimits": (frame_us, frame_us)},
            buffer_count=BUFFERS,
        )

    def _encoded(self, jpeg: bytes, timestamp_us: int | None) -> None:
        """Called in the encoder's thread with every picture."""
        captured_ns = time.time_ns() - self._age_ns(timestamp_us)
        with self._arrived:
            self.lost += self._newest is not None
            self._newest = jpeg, captured_ns
            self._arrived.notify()

    def _age_ns(self, timestamp_us: int | None) -> int:
        """Nanoseconds since the sensor took the picture: the encoder counts from its first one's boot time."""
        first_us = self._encoder.firsttimestamp
        if timestamp_us is None or first_us is None:
            return 0
        age = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - 1000 * (first_us + timestamp_us)
        return age if 0 <= age <= MAX_AGE_NS else 0

    def _gone(self, why: str) -> DeviceError:
        return DeviceError(f"camera {self._config.name}: {self._config.url}: {why}")


def _output(base: Any, receive: Any) -> Any:
    """An output of picamera2 that passes each picture to ``receive``."""

    class Receiver(base):  # type: ignore[misc]
        # later versions of picamera2 pass more than earlier ones
        def outputframe(self, frame: Any, _keyframe: bool = True, timestamp: int | None = None, *_: Any) -> None:
            receive(bytes(frame), timestamp)

    return Receiver()


def _even_size(config: CameraConfig) -> tuple[int, int]:
    """The configured size, made even as the encoder needs it; one side alone keeps 16:9."""
    width = config.width or round((config.height or DEFAULT_HEIGHT) * DEFAULT_WIDTH / DEFAULT_HEIGHT)
    height = config.height or round(width * DEFAULT_HEIGHT / DEFAULT_WIDTH)
    return width // 2 * 2, height // 2 * 2


def _quality(levels: Any, quality: int) -> Any:
    """picamera2's step that is nearest to a JPEG quality of 1 to 100: it knows five."""
    steps = (levels.VERY_LOW, levels.LOW, levels.MEDIUM, levels.HIGH, levels.VERY_HIGH)
    return steps[min(4, quality // 20)]


def open_picamera2(config: CameraConfig) -> Picamera2Camera:
    """``picamera2:`` or ``picamera2:?camera=1``. DeviceError where the package or the camera is missing."""
    try:
        modules = [importlib.import_module(name) for name in ("picamera2", "picamera2.encoders", "picamera2.outputs")]
    except (ImportError, ValueError) as error:  # ValueError: built for another numpy
        raise DeviceError(
            f"camera {config.name}: {config.url} needs picamera2, which cannot be imported ({error}); on Raspberry Pi "
            "OS: `sudo apt install python3-picamera2`, in an environment made with --system-site-packages"
        ) from error
    return Picamera2Camera(config, *modules)
