"""The next picture of a camera, for somebody who wants to see it.

An observer that is there for one frame, and that nobody waits for. The zipper decodes no picture: what must be made
smaller, the process that decodes pixels for handlers does, and what it gives becomes a PNG.
"""

import asyncio
import itertools
import struct
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from math import sqrt
from typing import Protocol

from appliance.errors import ConfigError, DeviceError
from appliance.frame import PICTURE_FORMATS
from appliance.inference.messages import Crop
from appliance.ipc.ring import FrameRef
from appliance.zipper.core import Ticket, Zipper
from appliance.zipper.router import MARK

FRAME_SECONDS = 10.0
"""A camera that has given no picture for so long has none to show."""
MAX_SNAPSHOT_BYTES = 2 << 20
_PNG_OVERHEAD = 4096


class Pixels(Protocol):
    """What of the inference broker is needed."""

    async def pixels(self, frame: FrameRef, crop: Crop, format: str, width: int, height: int) -> bytes:
        """Raises PeerError and ModelError."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    payload: bytes
    content_type: str


class Snapshots:
    """``cameras`` and ``tags`` give the names of all that there are, and the tags that their frames can have."""

    def __init__(
        self,
        zipper: Zipper,
        pixels: Pixels,
        cameras: Callable[[], Collection[str]],
        tags: Callable[[], Collection[int]],
    ) -> None:
        self._zipper = zipper
        self._pixels = pixels
        self._cameras = cameras
        self._tags = tags
        self._numbers = itertools.count(1)

    async def take(self, camera: str, max_bytes: int = MAX_SNAPSHOT_BYTES) -> Snapshot:
        """The next frame as it came, or a smaller PNG where it is no JPEG or over ``max_bytes``.

        ConfigError where there is no such camera, DeviceError where it gives no frame, and what decoding raises.
        """
        cameras = self._cameras()
        if camera not in cameras:
            raise ConfigError(f"there is no camera {camera!r}; there are: {', '.join(sorted(cameras)) or 'none'}")
        max_bytes = min(max_bytes, MAX_SNAPSHOT_BYTES)
        if max_bytes <= 2 * _PNG_OVERHEAD:
            raise ConfigError(f"the broker takes messages of {max_bytes} bytes only: too small for a picture")
        name = f"snapshot{MARK}{next(self._numbers)}"
        taken: asyncio.Future[Ticket] = asyncio.get_running_loop().create_future()

        def deliver(ticket: Ticket) -> None:
            frame = ticket.frame
            if frame.source == camera and frame.format in PICTURE_FORMATS and not taken.done():
                taken.set_result(ticket)  # and hold it
            else:
                self._zipper.finished(name, ticket)

        self._zipper.attach(name, self._tags(), 1, deliver, in_memory=True, shadow=True)  # no source waits for it
        try:
            async with asyncio.timeout(FRAME_SECONDS):
                ticket = await taken
            frame = ticket.frame
            if frame.format == "jpeg" and len(frame.payload) <= max_bytes:
                return Snapshot(bytes(frame.payload), "image/jpeg")
            if ticket.ref is None:
                raise AssertionError("an observer in memory got a frame that is not")
            width, height = fitting(frame.width, frame.height, max_bytes - _PNG_OVERHEAD)
            pixels = await self._pixels.pixels(ticket.ref, Crop(), "rgb", width, height)
        except TimeoutError as error:
            raise DeviceError(f"the camera {camera} has given no picture for {FRAME_SECONDS:.0f} s") from error
        finally:
            self._zipper.detach(name)
        return Snapshot(await asyncio.to_thread(png, pixels, width, height), "image/png")


def fitting(width: int, height: int, max_bytes: int) -> tuple[int, int]:
    """The size, in the same proportions, whose samples take at most ``max_bytes``, however badly they compress."""
    scale = min(1.0, sqrt(max_bytes / (height * (width * 3 + 1))))
    fitted_height = max(1, min(int(height * scale), max_bytes // 4))  # a pixel and its row's filter fit at least
    return max(1, min(int(width * scale), (max_bytes // fitted_height - 1) // 3)), fitted_height


def png(rgb: bytes, width: int, height: int) -> bytes:
    """A PNG (ISO 15948) of rows of 8-bit RGB: simple enough to do without what the zipper does not import."""
    rows = b"".join(b"\0" + rgb[start : start + width * 3] for start in range(0, len(rgb), width * 3))
    chunks = (
        (b"IHDR", struct.pack("!IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows, 6)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data)) for kind, data in chunks
    )
