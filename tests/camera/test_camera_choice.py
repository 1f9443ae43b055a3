import subprocess
import sys
from pathlib import Path

import pytest

from appliance.camera.camera import kind_of, open_camera, printable, target_size
from appliance.config import CameraConfig
from appliance.errors import ConfigError, DeviceError


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("synthetic:", "synthetic"),
        ("synthetic:?seed=7&defects=0.4", "synthetic"),
        ("picamera2:", "picamera2"),
        ("rtsp://camera/stream", "av"),
        ("http://camera/video.mjpg", "av"),
        ("/dev/video0", "av"),
    ],
)
def test_kind_follows_from_the_url(url: str, kind: str) -> None:
    assert kind_of(CameraConfig(url=url)) == kind


def test_what_is_at_a_path_decides(folder: Path, video: Path) -> None:
    assert kind_of(CameraConfig(url=str(folder))) == "images"
    assert kind_of(CameraConfig(url=str(folder / "0.jpg"))) == "images"
    assert kind_of(CameraConfig(url=str(video))) == "av"


def test_a_path_may_look_like_a_scheme(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    folder.rename("odd:name")
    assert kind_of(CameraConfig(url="odd:name")) == "images"


@pytest.mark.parametrize("url", ["", "no/such/file.mp4", "gopher://camera", "images:", "av:"])
def test_what_can_never_work_is_a_matter_of_configuration(url: str) -> None:
    with pytest.raises(ConfigError, match=r"camera gate: `url` .*No such file.*synthetic:"):
        open_camera(CameraConfig(name="gate", url=url))


def test_a_path_with_a_zero_byte_is_none() -> None:
    with pytest.raises(ConfigError, match="embedded null"):
        open_camera(CameraConfig(url="video\0.mp4"))


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("sed=1", "unknown field `sed`"),
        ("seed=x", "int"),
        ("seed=-1", ">= 0"),
        ("defects=1.5", "<= 1"),
        ("seed", "seed"),
        ("&".join(f"a{n}=1" for n in range(100)), "fields"),
    ],
)
def test_options_of_the_url_are_checked(query: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        open_camera(CameraConfig(url=f"synthetic:?{query}"))


def test_what_is_printed_holds_no_secret() -> None:
    assert printable("rtsp://user:p%40ss@camera:554/live?token=1") == "rtsp://camera:554/live"
    assert printable("synthetic:?seed=7") == "synthetic:?seed=7"
    assert printable("/data/user:a@b/clip.mp4") == "/data/user:a@b/clip.mp4"
    with pytest.raises(DeviceError) as caught:
        open_camera(CameraConfig(url="rtsp://user:hidden@127.0.0.1:1/live?key=hidden"))
    assert "hidden" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [(None, None, (640, 480)), (320, None, (320, 240)), (None, 120, (160, 120)), (100, 100, (100, 100))],
)
def test_target_size(width: int | None, height: int | None, size: tuple[int, int]) -> None:
    assert target_size(CameraConfig(width=width, height=height), 640, 480) == size


def test_backends_load_only_when_chosen() -> None:
    program = """
import sys
import appliance.camera.camera, appliance.camera.feed
assert not {"numpy", "av", "PIL", "simplejpeg", "picamera2"} & set(sys.modules), "loaded for nothing"
from appliance.config import CameraConfig
appliance.camera.camera.open_camera(CameraConfig()).read()
assert "numpy" in sys.modules and not {"av", "PIL", "picamera2"} & set(sys.modules), "loaded for the synthetic camera"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
