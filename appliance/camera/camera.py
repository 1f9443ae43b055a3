"""What every camera is, and how one is chosen by its URL."""

import os
import pkgutil
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar
from urllib.parse import parse_qsl, urlsplit

import msgspec

from appliance.config import CameraConfig
from appliance.errors import ConfigError
from appliance.frame import MetaValue

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MAX_PICTURE_SIDE = 8192
"""Pixels; a larger picture is refused before it is decoded."""
MAX_URL_OPTIONS = 16

BACKENDS: dict[str, str] = {
    "synthetic": "appliance.camera.synthetic:open_synthetic",
    "images": "appliance.camera.images:open_images",
    "av": "appliance.camera.av_backend:open_av",
    "picamera2": "appliance.camera.picamera2_backend:open_picamera2",
}
"""Kind of camera -> ``module:function`` that opens one; the module is imported when first chosen. A kind is
also the scheme of its URLs, but for those in PATH_KINDS."""
PATH_KINDS = frozenset({"images", "av"})
AV_SCHEMES = frozenset({"rtsp", "rtsps", "http", "https"})
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp"})

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):")
_CREDENTIALS = re.compile(r"(?<=//)[^/?#]*@")


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One picture: either ``pixels`` or ``jpeg`` is there, never both."""

    width: int
    height: int
    captured_ns: int
    """Wall-clock time, nanoseconds since 1970 (UTC)."""
    pixels: "npt.NDArray[np.uint8] | None" = None
    """RGB, uint8 [height, width, 3], C-contiguous."""
    jpeg: bytes | None = None
    """Encoded already, by the hardware or by whoever made the file."""
    pts: float | None = None
    """Seconds since the first picture, by which to pace it; None: a live camera paces itself."""
    meta: Mapping[str, MetaValue] = field(default_factory=dict)


class Camera(ABC):
    """A source of pictures, driven by blocking calls from one thread; closed by leaving its ``with`` block."""

    live: bool
    """True: real time, what is not read in time is lost. False: waits for its reader, and may come to an end."""
    lost: int = 0
    """Pictures that the camera made and nobody read in time, where it can know."""
    description: str
    """For logs and status, without credentials: what was opened, and its size and rate where known."""

    @abstractmethod
    def read(self) -> Picture | None:
        """The next picture; None at the end of a finite one. DeviceError where the camera is gone."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back; may be called more than once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_camera(config: CameraConfig) -> Camera:
    """Open what ``config.url`` names.

    ConfigError where the URL can never work (trying again is pointless), DeviceError where the camera is
    not there just now.
    """
    opener: Callable[[CameraConfig], Camera] = pkgutil.resolve_name(BACKENDS[kind_of(config)])
    return opener(config)


def kind_of(config: CameraConfig) -> str:
    """Key of BACKENDS for ``config.url``; ConfigError where there is none."""
    url = config.url
    scheme = _SCHEME.match(url)
    schemes = BACKENDS.keys() - PATH_KINDS
    if scheme and scheme[1] in schemes:
        return scheme[1]
    if scheme and scheme[1] in AV_SCHEMES:
        return "av"
    if url.startswith("/dev/"):
        return "av"
    try:
        mode = os.stat(url).st_mode  # noqa: PTH116 - the empty path must not mean "."
    except ValueError as error:  # a zero byte
        raise wrong_url(config, str(error)) from error
    except OSError as error:
        known = ", ".join(f"{name}:" for name in sorted(schemes | AV_SCHEMES))
        raise wrong_url(
            config, f"{error.strerror}; it is a file, a directory, /dev/videoN or one of {known}"
        ) from error
    if stat.S_ISDIR(mode) or os.path.splitext(url)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122
        return "images"
    return "av"


def target_size(config: CameraConfig, width: int, height: int) -> tuple[int, int]:
    """(width, height) that a picture of ``width`` x ``height`` is to be given: where only one is configured, in
    proportion."""
    if config.width is None and config.height is None:
        return width, height
    wide = config.width or max(1, round(width * (config.height or height) / height))
    high = config.height or max(1, round(height * wide / width))
    return min(wide, MAX_PICTURE_SIDE), min(high, MAX_PICTURE_SIDE)


def check_size(width: int, height: int) -> None:
    """ValueError for a picture that is empty or larger than MAX_PICTURE_SIDE."""
    if not (0 < width <= MAX_PICTURE_SIDE and 0 < height <= MAX_PICTURE_SIDE):
        raise ValueError(f"{width}x{height} is over the limit of {MAX_PICTURE_SIDE}x{MAX_PICTURE_SIDE}")


def wrong_url(config: CameraConfig, why: str) -> ConfigError:
    """The error for a ``url`` that cannot work, naming camera and key."""
    return ConfigError(f"camera {config.name}: `url` {printable(config.url)!r}: {why}")


def printable(url: str) -> str:
    """The URL without what may be secret in it: user, password, the query of a network camera."""
    return _CREDENTIALS.sub("", url).partition("?")[0] if "://" in url else url


Options = TypeVar("Options", bound=msgspec.Struct)


def url_options(config: CameraConfig, kind: type[Options]) -> Options:
    """The part of ``url`` after ``?`` as a struct; ConfigError names what is unknown or out of bounds."""
    try:
        query = urlsplit(config.url).query
        pairs = parse_qsl(query, strict_parsing=True, max_num_fields=MAX_URL_OPTIONS) if query else []
        return msgspec.convert(dict(pairs), kind, strict=False)
    except ValueError as error:  # msgspec's ValidationError is one too
        raise wrong_url(config, str(error)) from error
