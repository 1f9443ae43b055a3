import http.server
import socketserver
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import simplejpeg
from av.error import ArgumentError
from camera_scenes import FPS, FRAMES, HEIGHT, WIDTH, scene, write_video
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rtsp_server import FPS as RTSP_FPS
from rtsp_server import RtspServer

from appliance.camera import av_backend
from appliance.camera.av_backend import input_of, open_av
from appliance.camera.camera import Camera, Picture
from appliance.config import CameraConfig
from appliance.errors import ConfigError, DeviceError


def played(url: Path | str, **keys: object) -> list[Picture]:
    found = []
    with open_av(CameraConfig(name="gate", url=str(url), **keys)) as camera:  # type: ignore[arg-type]
        while (picture := camera.read()) is not None:
            found.append(picture)
    return found


def without_tables(jpeg: bytes) -> bytes:
    """The JPEG without its Huffman tables, as many USB cameras send it."""
    out, at = bytearray(jpeg[:2]), 2
    while jpeg[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if jpeg[at + 1] != 0xC4:
            out += jpeg[at:end]
        at = end
    return bytes(out + jpeg[at:])


# --- files ---------------------------------------------------------------------------------------------------


def test_every_frame_of_a_file_comes_in_order(video: Path) -> None:
    found = played(video)
    assert [picture.pts for picture in found] == pytest.approx([n / FPS for n in range(FRAMES)])
    for number, picture in enumerate(found):
        assert picture.pixels is not None
        assert np.abs(picture.pixels.astype(int) - scene(number)).mean() < 4


def test_a_cap_thins_a_file_out_unless_it_is_lossless(video: Path) -> None:
    assert len(played(video, fps=FPS / 2)) == FRAMES / 2
    assert len(played(video, fps=FPS / 2, lossless=True)) == FRAMES


def test_motion_jpeg_is_passed_on_as_it_is(mjpeg: Path, jpegs: list[bytes]) -> None:
    assert [picture.jpeg for picture in played(mjpeg)] == jpegs


def test_motion_jpeg_in_a_container_too(tmp_path: Path) -> None:
    found = played(write_video(tmp_path / "video.avi", "mjpeg"))
    assert len(found) == FRAMES
    assert all(picture.jpeg is not None and picture.pixels is None for picture in found)


def test_motion_jpeg_of_another_size_is_decoded(mjpeg: Path) -> None:
    for picture in played(mjpeg, height=60):
        assert picture.pixels is not None
        assert picture.pixels.shape == (60, 80, 3)


def test_motion_jpeg_without_tables_can_be_decoded_by_others(tmp_path: Path, jpegs: list[bytes]) -> None:
    path = tmp_path / "bare.mjpeg"
    path.write_bytes(b"".join(without_tables(jpeg) for jpeg in jpegs))
    found = played(path)
    assert len(found) == FRAMES
    for picture, jpeg in zip(found, jpegs, strict=True):
        assert picture.jpeg is not None
        assert len(picture.jpeg) < len(jpeg)
        assert np.array_equal(simplejpeg.decode_jpeg(picture.jpeg), simplejpeg.decode_jpeg(jpeg))


def test_motion_jpeg_that_others_may_not_take_is_decoded(tmp_path: Path, jpegs: list[bytes]) -> None:
    odd = bytearray(jpegs[1])
    odd[odd.index(b"\xff\xc0") + 11] = 0x14  # the sampling factors of the first component
    (tmp_path / "odd.mjpeg").write_bytes(jpegs[0] + odd + jpegs[2])
    found = played(tmp_path / "odd.mjpeg")
    assert [picture.jpeg for picture in found] == [jpegs[0], None, jpegs[2]]
    assert found[1].pixels is not None
    assert found[1].pixels.shape == (HEIGHT, WIDTH, 3)


def test_a_damaged_picture_is_skipped(tmp_path: Path, jpegs: list[bytes]) -> None:
    path = tmp_path / "stream.mjpeg"
    damaged = jpegs[1][:2] + b"\xff\xc0\x00\x04" + jpegs[1][6:]
    path.write_bytes(jpegs[0] + damaged + jpegs[2])
    assert [picture.jpeg for picture in played(path)] == [jpegs[0], jpegs[2]]


def test_nothing_but_damage_is_an_error(tmp_path: Path, jpegs: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "stream.mjpeg"
    damaged = jpegs[1][:2] + b"\xff\xc0\x00\x04" + jpegs[1][6:]
    path.write_bytes(jpegs[0] + damaged * 20)
    assert len(played(path)) == 1
    monkeypatch.setattr(av_backend, "MAX_DAMAGED", 10)
    with pytest.raises(DeviceError, match=r"camera gate: .*11 damaged packets in a row"):
        played(path)


def test_a_file_that_breaks_off_is_played_to_where_it_does(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mkv", "mpeg4").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    assert 0 < len(played(tmp_path / "cut.mkv")) < FRAMES


def test_what_is_not_a_video_is_a_matter_of_configuration(tmp_path: Path, video: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "cut.mp4").write_bytes(video.read_bytes()[:2000])
    for name in ("text.mp4", "cut.mp4"):
        with pytest.raises(ConfigError, match=r"camera gate: `url` .*Invalid data"):
            played(tmp_path / name)


def test_sound_alone_is_not_a_camera(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(ConfigError, match="no video"):
        played(tmp_path / "sound.wav")


def test_pictures_that_are_too_large_are_refused(tmp_path: Path, jpegs: list[bytes]) -> None:
    large = write_video(tmp_path / "large.avi", "mjpeg", frames=1, size=(8208, 16))
    with pytest.raises(ConfigError, match="8208x16 is over the limit"):
        played(large)
    (tmp_path / "grows.mjpeg").write_bytes(jpegs[0] + simplejpeg.encode_jpeg(scene(1, 8208, 16)) + jpegs[2])
    assert [picture.jpeg for picture in played(tmp_path / "grows.mjpeg")] == [jpegs[0], jpegs[2]]


def test_a_file_cannot_make_us_open_another(tmp_path: Path, video: Path) -> None:
    with RtspServer() as server:
        (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXTINF:1,\n{server.url}\n")
        with pytest.raises(ConfigError):
            played(tmp_path / "list.m3u8")
        assert not server.transport


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 100_000), st.binary(min_size=1, max_size=8))),
    st.integers(0, 9_999),
)
def test_any_damage_is_an_error_of_ours_or_fewer_pictures(
    tmp_path: Path, video: Path, mjpeg: Path, bare: bool, changes: list[tuple[int, bytes]], cut: int
) -> None:
    data = bytearray((mjpeg if bare else video).read_bytes())
    for place, new in changes:
        at = place % len(data)
        data[at : at + len(new)] = new
    path = tmp_path / ("damaged.mjpeg" if bare else "damaged.mp4")
    path.write_bytes(data[cut:] if cut % 3 == 0 else data)
    try:
        found = played(path)
    except (ConfigError, DeviceError):
        return
    assert found


def read_on(camera: Camera) -> None:
    """Read what is still on its way, and more."""
    for _ in range(1000):
        camera.read()


# --- network -------------------------------------------------------------------------------------------------


def test_rtsp_runs_over_tcp_and_keeps_to_the_cap() -> None:
    with RtspServer() as server, open_av(CameraConfig(url=server.url, fps=RTSP_FPS / 5)) as camera:
        assert camera.live
        found = [camera.read() for _ in range(5)]
    levels = [int(picture.pixels[60, 80, 0]) for picture in found if picture and picture.pixels is not None]
    assert "RTP/AVP/TCP" in server.transport
    # the pictures grow lighter by one; every fifth is kept
    steps = np.diff(levels)
    assert steps.sum() == pytest.approx(20, abs=2)


def test_a_network_camera_that_goes_away_is_a_device_error() -> None:
    with RtspServer() as server:
        camera = open_av(CameraConfig(name="gate", url=server.url, stall_seconds=5))
        camera.read()
    with camera, pytest.raises(DeviceError, match="camera gate: rtsp://127") as caught:
        read_on(camera)
    assert "secret" not in str(caught.value)


@pytest.mark.slow
def test_a_network_camera_that_hangs_is_a_device_error() -> None:
    with RtspServer() as server, open_av(CameraConfig(url=server.url, stall_seconds=1.5)) as camera:
        camera.read()
        server.hang()
        with pytest.raises(DeviceError, match=r"no answer in time|timed out"):
            read_on(camera)


class Multipart(http.server.BaseHTTPRequestHandler):
    """Pictures without end, as many network cameras serve them; or a whole file."""

    def __init__(self, pictures: list[bytes], file: bytes, *rest: object) -> None:
        self.pictures, self.file = pictures, file
        super().__init__(*rest)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path == "/video.mp4":
            self.send_header("Content-Length", str(len(self.file)))
            self.end_headers()
            self.wfile.write(self.file)
            return
        self.send_header("Content-Type", "multipart/x-mixed-replace;boundary=next")
        self.end_headers()
        for jpeg in self.pictures:
            head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            self.wfile.write(head.encode() + jpeg + b"\r\n")

    def log_message(self, *_: object) -> None:
        """Tests are quiet."""


@pytest.fixture
def web(jpegs: list[bytes], video: Path) -> Iterator[str]:
    handler = partial(Multipart, jpegs, video.read_bytes())
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_motion_jpeg_over_http_is_live(web: str, jpegs: list[bytes]) -> None:
    with open_av(CameraConfig(name="gate", url=f"{web}/stream")) as camera:
        assert camera.live
        found = [camera.read() for _ in range(FRAMES)]
        assert [picture.jpeg for picture in found if picture is not None] == jpegs
        with pytest.raises(DeviceError, match=r"the stream ended|Input/output error"):
            camera.read()


def test_a_file_over_http_is_not(web: str) -> None:
    with open_av(CameraConfig(url=f"{web}/video.mp4")) as camera:
        assert not camera.live
    assert len(played(f"{web}/video.mp4")) == FRAMES


# --- V4L2 ----------------------------------------------------------------------------------------------------


def test_a_device_is_asked_for_motion_jpeg() -> None:
    asked = input_of(CameraConfig(url="/dev/video2", width=640, height=480, fps=15))
    assert asked == av_backend.Input(
        "/dev/video2",
        live=True,
        format="v4l2",
        options={"input_format": "mjpeg", "video_size": "640x480", "framerate": "15"},
    )
    assert input_of(CameraConfig(url="/dev/video2", width=640)).options == {"input_format": "mjpeg"}


def test_a_device_without_motion_jpeg_gives_what_it_has(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no V4L2 device here: a file takes its place behind ``av.open``."""
    asked: list[dict[str, str]] = []
    really_open = av.open

    def device(url: str, *, format: str, options: dict[str, str], **_: object) -> object:
        assert (url, format) == ("/dev/video0", "v4l2")
        asked.append(options)
        if "input_format" in options:
            raise ArgumentError(22, "Invalid argument", url)
        return really_open(str(video))

    monkeypatch.setattr(av, "open", device)
    with open_av(CameraConfig(url="/dev/video0")) as camera:
        picture = camera.read()
        assert camera.live
        assert picture is not None
        assert picture.pts is None
    assert [options.get("input_format") for options in asked] == ["mjpeg", None]
