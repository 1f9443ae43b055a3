"""The picamera2 backend against a stand-in with the library's interface; a real camera is only on the device."""

import sys
import time
from collections.abc import Iterator

import pytest
import stand_in_picamera2
from stand_in_picamera2 import Picamera2, Quality

from appliance.camera import picamera2_backend
from appliance.camera.picamera2_backend import open_picamera2
from appliance.config import CameraConfig
from appliance.errors import ConfigError, DeviceError


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Picamera2]]:
    """Puts the stand-in in place; the cameras that are opened appear in the list."""
    for name, module in stand_in_picamera2.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    opened: list[Picamera2] = []
    monkeypatch.setattr(Picamera2, "opened", opened)
    yield opened
    for device in opened:
        device.stopped.set()


def test_streams_are_configured(devices: list[Picamera2]) -> None:
    with open_picamera2(CameraConfig(url="picamera2:", width=1281, height=721, fps=15)) as camera:
        assert camera.description == "picamera2: 1280x720, 15 fps, Motion JPEG"
    (device,) = devices
    assert device.config["main"] == {"size": (1280, 720), "format": "YUV420"}
    assert device.config["lores"] == {"size": (320, 180), "format": "YUV420"}
    assert device.config["controls"] == {"FrameDurationLimits": (66667, 66667)}
    assert device.closed
    assert device.stopped.is_set()


@pytest.mark.parametrize(("quality", "step"), [(1, "VERY_LOW"), (50, "MEDIUM"), (85, "VERY_HIGH"), (100, "VERY_HIGH")])
def test_quality_becomes_a_step(devices: list[Picamera2], quality: int, step: str) -> None:
    with open_picamera2(CameraConfig(url="picamera2:", quality=quality)):
        assert devices[0].quality is Quality[step]


def test_pictures_carry_the_time_of_the_sensor(devices: list[Picamera2]) -> None:
    before = time.time_ns()
    with open_picamera2(CameraConfig(url="picamera2:", width=64, height=48)) as camera:
        stamps = [camera.read().captured_ns for _ in range(3)]
    assert before - 1_000_000 <= stamps[0] < stamps[1] < stamps[2] <= time.time_ns()


def test_a_timestamp_of_another_clock_is_not_used(devices: list[Picamera2], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picamera2_backend, "MAX_AGE_NS", -1)  # as if every one were
    before = time.time_ns()
    with open_picamera2(CameraConfig(url="picamera2:", width=64, height=48)) as camera:
        assert camera.read().captured_ns >= before


def test_pictures_nobody_reads_are_counted(devices: list[Picamera2]) -> None:
    with open_picamera2(CameraConfig(url="picamera2:", width=64, height=48)) as camera:
        with camera._arrived:
            assert camera._arrived.wait_for(lambda: camera.lost >= 3, 20)
        camera.read()


def test_a_camera_that_falls_silent_is_an_error(devices: list[Picamera2]) -> None:
    with open_picamera2(CameraConfig(url="picamera2:", width=64, height=48, stall_seconds=0.05)) as camera:
        devices[0].stop_recording()
        camera._newest = None
        with pytest.raises(DeviceError, match=r"no picture for 0\.1 s"):
            camera.read()


def test_no_camera_attached(devices: list[Picamera2]) -> None:
    with pytest.raises(DeviceError, match="rpicam-hello"):
        open_picamera2(CameraConfig(url="picamera2:?camera=1"))


def test_a_camera_that_cannot_start_is_closed(devices: list[Picamera2], monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object, **__: object) -> None:
        raise RuntimeError("Failed to acquire camera: Device or resource busy")

    monkeypatch.setattr(Picamera2, "configure", busy)
    with pytest.raises(DeviceError, match="resource busy"):
        open_picamera2(CameraConfig(url="picamera2:"))
    assert devices[0].closed


def test_a_camera_that_cannot_be_stopped_is_no_defect(
    devices: list[Picamera2], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(self: Picamera2) -> None:
        self.stopped.set()
        raise RuntimeError("camera is gone")

    monkeypatch.setattr(Picamera2, "stop_recording", gone)
    with open_picamera2(CameraConfig(url="picamera2:", width=64, height=48)) as camera:
        camera.read()
    assert "event=camera_not_closed camera=camera error=camera is gone" in caplog.text


def test_unknown_options_are_refused(devices: list[Picamera2]) -> None:
    with pytest.raises(ConfigError, match="unknown field `cam`"):
        open_picamera2(CameraConfig(url="picamera2:?cam=1"))
    assert not devices


def test_absence_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "picamera2", None)  # as Python marks what cannot be imported
    with pytest.raises(DeviceError, match="sudo apt install python3-picamera2"):
        open_picamera2(CameraConfig(url="picamera2:"))
