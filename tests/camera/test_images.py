import io
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from camera_scenes import scene
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from appliance.camera import images
from appliance.camera.camera import Picture
from appliance.camera.images import open_images
from appliance.config import CameraConfig
from appliance.errors import ConfigError, DeviceError


def played(place: Path, **keys: object) -> list[Picture]:
    camera = open_images(CameraConfig(url=str(place), **keys))  # type: ignore[arg-type]
    found = []
    while (picture := camera.read()) is not None:
        found.append(picture)
    return found


def test_pictures_come_in_the_order_of_their_names(folder: Path) -> None:
    found = played(folder)
    assert [picture.meta["file"] for picture in found] == ["0.jpg", "1.png", "2.bmp", "3.JPEG", "4.jpg"]
    assert [picture.pts for picture in found] == pytest.approx([n / images.DEFAULT_FPS for n in range(5)])


def test_jpeg_is_passed_on_as_it_is(folder: Path) -> None:
    found = played(folder)
    assert found[0].jpeg == (folder / "0.jpg").read_bytes()
    assert found[3].jpeg == (folder / "3.JPEG").read_bytes()


def test_other_pictures_are_exact(folder: Path) -> None:
    found = played(folder)
    for number in (1, 2):
        pixels = found[number].pixels
        assert pixels is not None
        assert np.array_equal(pixels, scene(number))


def test_another_size_means_decoding(folder: Path) -> None:
    for picture in played(folder, width=40):
        assert picture.jpeg is None
        assert picture.pixels is not None
        assert picture.pixels.shape == (30, 40, 3)


def test_a_single_picture(folder: Path) -> None:
    assert [picture.meta["file"] for picture in played(folder / "1.png")] == ["1.png"]


def test_what_is_in_a_file_counts_not_its_name(folder: Path) -> None:
    (folder / "1.png").rename(folder / "0a.jpg")
    assert [picture.jpeg is None for picture in played(folder)] == [False, True, True, False, False]


def test_every_kind_of_pixel_becomes_rgb(tmp_path: Path) -> None:
    for number, mode in enumerate(("1", "L", "P", "RGBA", "I;16")):
        Image.new(mode, (8, 6)).save(tmp_path / f"{number}.png")
    Image.new("CMYK", (8, 6)).save(tmp_path / "5.jpg")
    Image.new("L", (8, 6)).save(tmp_path / "6.jpg")
    found = played(tmp_path)
    assert len(found) == 7
    for picture in found[:6]:
        assert picture.pixels is not None
        assert picture.pixels.shape == (6, 8, 3)
    assert simplejpeg.decode_jpeg(found[6].jpeg).shape == (6, 8, 3)


@pytest.mark.parametrize("sampling", [0x14, 0x31])
def test_a_jpeg_that_others_may_not_take_is_decoded(tmp_path: Path, sampling: int) -> None:
    jpeg = bytearray(simplejpeg.encode_jpeg(scene(1)))
    at = jpeg.index(b"\xff\xc0") + 11  # the sampling factors of the first component
    jpeg[at] = sampling
    (tmp_path / "odd.jpg").write_bytes(jpeg)
    (picture,) = played(tmp_path)
    assert picture.jpeg is None
    assert picture.pixels is not None


def test_damaged_pictures_are_skipped_and_logged_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = (folder / "0.jpg").read_bytes()
    (folder / "0.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "1.png").write_bytes(b"")
    (folder / "2.bmp").write_bytes(b"BM" + bytes(20))
    camera = open_images(CameraConfig(url=str(folder), loop=True))
    with caplog.at_level(logging.WARNING):
        names = [picture.meta["file"] for _ in range(6) if (picture := camera.read()) is not None]
    assert names == ["3.JPEG", "4.jpg"] * 3
    lines = [record.getMessage() for record in caplog.records]
    begin = f"event=picture_skipped camera=camera error={folder}/"
    assert [line.removeprefix(begin).split(": ")[0] for line in lines] == ["0.jpg", "1.png", "2.bmp"]


def test_nothing_but_damaged_pictures_is_an_error(folder: Path) -> None:
    for file in folder.iterdir():
        file.write_bytes(b"damaged")
    with pytest.raises(DeviceError, match="none of the 5 pictures"):
        played(folder)
    with pytest.raises(DeviceError, match="none of the 5 pictures"):
        played(folder, loop=True)


def test_what_is_too_large_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (8200, 8)).save(tmp_path / "0.png")
    Image.new("L", (8, 8200)).save(tmp_path / "1.jpg")
    Image.new("L", (8, 8)).save(tmp_path / "2.png")
    (tmp_path / "3.png").write_bytes((tmp_path / "2.png").read_bytes() + bytes(5000))
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 4000)
    assert [picture.meta["file"] for picture in played(tmp_path)] == ["2.png"]


def test_what_is_not_a_file_is_passed_over(folder: Path) -> None:
    (folder / "a.jpg").mkdir()
    (folder / "b.jpg").symlink_to("nowhere")
    os.mkfifo(folder / "c.jpg")
    assert len(played(folder)) == 5


def test_a_name_that_is_not_text_can_still_be_told(folder: Path) -> None:
    (folder / "0.jpg").rename(os.fsdecode(os.fsencode(folder) + b"/\xff.jpg"))
    assert played(folder)[-1].meta["file"] == "?.jpg"


def test_an_empty_or_crowded_directory_is_refused(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match="holds no picture"):
        open_images(CameraConfig(url=str(tmp_path / "none")))
    monkeypatch.setattr(images, "MAX_IMAGES", 4)
    with pytest.raises(ConfigError, match="over the limit of 4"):
        open_images(CameraConfig(url=str(folder)))


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(scene(3, 40, 30)).save(buffer, kind)
    return buffer.getvalue()


SAMPLES = {kind: encoded(kind) for kind in ("JPEG", "PNG", "BMP")}


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it mistrusts; here everything is to be mistrusted
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(SAMPLES)),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6),
    st.integers(0, 10_000),
)
def test_any_damage_is_a_picture_or_a_skipped_file(
    tmp_path: Path, kind: str, changes: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(SAMPLES[kind])
    for place, value in changes:
        data[place % len(data)] = value
    file = tmp_path / f"a.{'jpg' if kind == 'JPEG' else kind.lower()}"
    file.write_bytes(data[: cut or None])
    try:
        (picture,) = played(file)
    except DeviceError:
        return
    assert 0 < picture.width <= 8192
    assert 0 < picture.height <= 8192
