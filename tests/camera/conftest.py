"""Files that cameras play, and cameras that play a test's script."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import scripted_camera
import simplejpeg
from camera_scenes import FRAMES, scene, write_video
from PIL import Image

from appliance.camera import camera


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MPEG-4 in MP4, FRAMES pictures at FPS."""
    return write_video(tmp_path_factory.mktemp("video") / "video.mp4", "mpeg4")


@pytest.fixture(scope="session")
def jpegs() -> list[bytes]:
    return [simplejpeg.encode_jpeg(scene(number), colorsubsampling="420") for number in range(FRAMES)]


@pytest.fixture(scope="session")
def mjpeg(tmp_path_factory: pytest.TempPathFactory, jpegs: list[bytes]) -> Path:
    """A bare sequence of JPEGs: no container, no timestamps."""
    path = tmp_path_factory.mktemp("mjpeg") / "stream.mjpeg"
    path.write_bytes(b"".join(jpegs))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures in four formats; each is the scene with the number in its name."""
    place = tmp_path / "pictures"
    place.mkdir()
    for number, suffix in enumerate(("jpg", "png", "bmp", "JPEG", "jpg")):
        if suffix.lower().startswith("jp"):
            data = simplejpeg.encode_jpeg(scene(number))
        else:
            buffer = io.BytesIO()
            Image.fromarray(scene(number)).save(buffer, suffix)
            data = buffer.getvalue()
        (place / f"{number}.{suffix}").write_bytes(data)
    (place / "notes.txt").write_text("not a picture")
    return place


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[scripted_camera.Script], str]]:
    """Registers the scripted backend; call with a script for the URL that plays it."""
    monkeypatch.setitem(camera.BACKENDS, "scripted", "scripted_camera:open_scripted")

    def register(script: scripted_camera.Script) -> str:
        name = str(len(scripted_camera.SCRIPTS))
        scripted_camera.SCRIPTS[name] = script
        return f"scripted:{name}"

    yield register
    for script in scripted_camera.SCRIPTS.values():
        script.let_go.set()  # no thread is left hanging
    scripted_camera.SCRIPTS.clear()
