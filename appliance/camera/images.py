"""A directory of still pictures (or one of them) played as a camera."""

import io
import logging
import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from appliance.camera.camera import IMAGE_SUFFIXES, Camera, Picture, check_size, target_size, wrong_url
from appliance.camera.jpeg import size_of
from appliance.config import CameraConfig
from appliance.errors import DeviceError

DEFAULT_FPS = 10.0
MAX_IMAGES = 100_000
MAX_FILE_BYTES = 64 << 20

_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow raises about a file that is not what it says."""

log = logging.getLogger(__name__)


class ImagesCamera(Camera):
    """Pictures in the order of their names; a damaged one is logged once and skipped."""

    live = False

    def __init__(self, config: CameraConfig, files: list[Path]) -> None:
        self.description = f"{config.url}: {len(files)} pictures"
        self._config = config
        self._files = files
        self._fps = config.fps or DEFAULT_FPS
        self._at = 0
        self._read = 0
        self._damaged: set[Path] = set()

    def read(self) -> Picture | None:
        """The next good picture; DeviceError where none of them is."""
        while len(self._damaged) < len(self._files):
            if self._at == len(self._files):
                if not self._config.loop:
                    return None
                self._at = 0
            file = self._files[self._at]
            self._at += 1
            if file in self._damaged:
                continue
            try:
                picture = self._load(file)
            except _DAMAGED as error:
                log.warning("event=picture_skipped camera=%s error=%s: %s", self._config.name, file, error)
                self._damaged.add(file)
                continue
            self._read += 1
            return picture
        raise DeviceError(
            f"camera {self._config.name}: none of the {len(self._files)} pictures in {self._config.url} can be read; "
            "the log says why"
        )

    def close(self) -> None:
        """Nothing is held open."""

    def _load(self, file: Path) -> Picture:
        data = _bounded(file)
        jpeg, pixels = None, None
        size = _jpeg_size(data)
        if size is not None and target_size(self._config, *size) == size:
            width, height = size
            jpeg = data
        else:
            pixels = self._decoded(data)
            height, width = pixels.shape[:2]
        name = file.name.encode("utf-8", "replace").decode()
        return Picture(width, height, time.time_ns(), pixels, jpeg, self._read / self._fps, {"file": name})

    def _decoded(self, data: bytes) -> npt.NDArray[np.uint8]:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "BMP")) as image:
            check_size(*image.size)  # only the header has been read so far
            size = target_size(self._config, *image.size)
            picture = image.convert("RGB")
        if picture.size != size:
            picture = picture.resize(size, Image.Resampling.BILINEAR)
        return np.array(picture, np.uint8)


def _bounded(file: Path) -> bytes:
    with file.open("rb") as stream:
        data = stream.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"larger than {MAX_FILE_BYTES} bytes")
    return data


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a JPEG that is good to its end and can be passed on as it is, else None."""
    size = size_of(data)
    if size is not None:
        try:
            simplejpeg.decode_jpeg(data, "gray", min_width=1, min_height=1, min_factor=8)  # an eighth: quick
        except ValueError:
            return None
    return size


def open_images(config: CameraConfig) -> ImagesCamera:
    """The pictures that ``config.url`` names; ConfigError where there are none, or more than MAX_IMAGES."""
    place = Path(config.url)
    try:
        if place.is_dir():
            with os.scandir(place) as entries:
                files = sorted(Path(entry.path) for entry in entries if _is_picture(entry))
        else:
            files = [place]
    except OSError as error:
        raise wrong_url(config, f"cannot be read: {error.strerror}") from error
    if not files:
        raise wrong_url(config, f"the directory holds no picture ({', '.join(sorted(IMAGE_SUFFIXES))})")
    if len(files) > MAX_IMAGES:
        raise wrong_url(config, f"{len(files)} pictures are over the limit of {MAX_IMAGES}")
    return ImagesCamera(config, files)


def _is_picture(entry: "os.DirEntry[str]") -> bool:
    return os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES and entry.is_file()  # noqa: PTH122
