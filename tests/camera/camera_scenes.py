"""Pictures and videos made for the tests."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.video.stream import VideoStream

FRAMES = 24
WIDTH, HEIGHT, FPS = 160, 120, 12


def scene(number: int, width: int = WIDTH, height: int = HEIGHT) -> npt.NDArray[np.uint8]:
    """A grey picture, lighter with its number, with a red corner."""
    pixels = np.full((height, width, 3), 20 + 8 * number, np.uint8)
    pixels[: height // 4, : width // 4] = (255, 0, 0)
    return pixels


def write_video(path: Path, codec: str, frames: int = FRAMES, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.gop_size = 6
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(scene(number % 25, *size))
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
