"""What every camera promises, checked on every backend there is on this machine."""

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import stand_in_picamera2
from rtsp_server import RtspServer

from appliance.camera.camera import Picture, open_camera
from appliance.config import CameraConfig
from appliance.errors import DeviceError
from appliance.frame import MAX_META_ENTRIES, MAX_META_TEXT

VIDEOS = Path(__file__).parents[3] / "shared" / "data" / "video"
ENOUGH = 12
"""Pictures to look at of a camera that has more."""

Make = Callable[..., CameraConfig]


@pytest.fixture(
    params=[
        "synthetic",
        "images",
        "video",
        "mjpeg",
        "staged-video",
        "rtsp",
        "v4l2",
        "picamera2",
        "picamera2-stand-in",
    ]
)
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes configurations of one kind of camera."""
    kind: str = request.param
    if kind == "rtsp":
        with RtspServer() as server:
            yield lambda **keys: CameraConfig(url=server.url, **keys)
        return
    if kind == "picamera2-stand-in":
        for name, module in stand_in_picamera2.modules().items():
            monkeypatch.setitem(sys.modules, name, module)
    places: dict[str, Callable[[], str]] = {
        "synthetic": lambda: "synthetic:?seed=3",
        "images": lambda: str(request.getfixturevalue("folder")),
        "video": lambda: str(request.getfixturevalue("video")),
        "mjpeg": lambda: str(request.getfixturevalue("mjpeg")),
        "staged-video": lambda: _present(VIDEOS / "store-aisle.mp4", "the staged test data is not here"),
        "v4l2": lambda: _present(Path("/dev/video0"), "no V4L2 camera on this machine"),
        "picamera2": _picamera2,
        "picamera2-stand-in": lambda: "picamera2:",
    }
    url = places[kind]()
    yield lambda **keys: CameraConfig(url=url, **keys)


def _present(path: Path, otherwise: str) -> str:
    if not path.exists():
        pytest.skip(otherwise)
    return str(path)


def _picamera2() -> str:
    if importlib.util.find_spec("picamera2") is None:
        pytest.skip("picamera2 is not installed: no Raspberry Pi camera on this machine")
    return "picamera2:"


def pictures(config: CameraConfig, most: int = ENOUGH) -> list[Picture]:
    found: list[Picture] = []
    with open_camera(config) as camera:
        while len(found) < most and (picture := camera.read()) is not None:
            found.append(picture)
    return found


def check(picture: Picture) -> None:
    """One picture keeps its promises."""
    assert (picture.pixels is None) != (picture.jpeg is None)
    pixels = picture.pixels
    if picture.jpeg is not None:
        pixels = simplejpeg.decode_jpeg(picture.jpeg)
    assert pixels is not None
    assert pixels.shape == (picture.height, picture.width, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert len(picture.meta) <= MAX_META_ENTRIES
    assert all(len(str(value)) <= MAX_META_TEXT for value in picture.meta.values())


def test_pictures_are_well_formed(make: Make) -> None:
    before = time.time_ns()
    found = pictures(make())
    assert found
    for picture in found:
        check(picture)
        assert before <= picture.captured_ns <= time.time_ns()


def test_only_a_camera_that_can_wait_carries_timestamps(make: Make) -> None:
    with open_camera(make()) as camera:
        stamps = [picture.pts for _ in range(3) if (picture := camera.read()) is not None]
        if camera.live:
            assert stamps == [None] * 3
        else:
            assert stamps[0] == 0
            assert all(a is not None and b is not None and a < b for a, b in pairwise(stamps))


def test_size_is_what_was_asked_for(make: Make) -> None:
    for picture in pictures(make(width=96, height=64), 3):
        check(picture)
        assert (picture.width, picture.height) == (96, 64)


def test_one_side_keeps_the_proportions(make: Make) -> None:
    (whole,) = pictures(make(), 1)
    (small,) = pictures(make(width=80), 1)
    check(small)
    assert small.width == 80
    assert abs(small.height - 80 * whole.height / whole.width) <= 2


def test_description_names_the_camera_and_no_secret(make: Make) -> None:
    config = make()
    with open_camera(config) as camera:
        assert camera.description
        assert "secret" not in camera.description


def test_closing_twice_is_harmless(make: Make) -> None:
    camera = open_camera(make())
    camera.read()
    camera.close()
    camera.close()


def test_end_is_the_end_until_it_loops(make: Make) -> None:
    config = make()
    with open_camera(config) as camera:
        if camera.live or config.url.startswith("synthetic:"):
            pytest.skip("this camera has no end")
        count = 0
        while camera.read() is not None:
            count += 1
        assert camera.read() is None
    looped = pictures(make(loop=True), 2 * count + 1)
    assert len(looped) == 2 * count + 1
    stamps = [picture.pts for picture in looped]
    assert all(a is not None and b is not None and a < b for a, b in pairwise(stamps))


def test_rate_is_capped(make: Make) -> None:
    config = make(fps=4)
    with open_camera(config) as camera:
        if camera.live:
            pytest.skip("the rate of a live camera is its own clock's business")
        stamps = [picture.pts for _ in range(3) if (picture := camera.read()) is not None]
    assert all(a is not None and b is not None and b - a >= 0.9 / 4 for a, b in pairwise(stamps))


def test_an_absent_camera_of_each_kind_says_so(tmp_path: Path) -> None:
    for url in ("rtsp://127.0.0.1:1/none", "/dev/video63", "picamera2:"):
        if url == "picamera2:" and importlib.util.find_spec("picamera2") is not None:
            continue
        with pytest.raises(DeviceError, match="camera gate:"):
            open_camera(CameraConfig(name="gate", url=url))
