"""The next picture of a camera, from a zipper with a ring."""

import asyncio
import io
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from appliance.errors import ConfigError, DeviceError, PeerError
from appliance.frame import Frame
from appliance.inference.messages import Crop
from appliance.ipc.ring import FrameRef, RingWriter
from appliance.snapshot import MAX_SNAPSHOT_BYTES, Snapshots, fitting, png
from appliance.zipper.core import Zipper


@pytest.fixture
def ring() -> Iterator[RingWriter]:
    with RingWriter(8 << 20) as ring:
        yield ring


class Decoder:
    """Red pixels, of any picture."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, int]] = []
        self.fails = False

    async def pixels(self, frame: FrameRef, crop: Crop, format: str, width: int, height: int) -> bytes:
        assert crop == Crop()
        self.asked.append((format, width, height))
        if self.fails:
            raise PeerError("no picture")
        return b"\xff\0\0" * (width * height)


class Box:
    def __init__(self, ring: RingWriter) -> None:
        self.zipper = Zipper(ring)
        self.decoder = Decoder()
        self.snapshots = Snapshots(self.zipper, self.decoder, lambda: ["camera", "other"], lambda: {1, 2})
        self._seq = 0

    def picture(self, payload: bytes = b"jpeg", source: str = "camera", **changes: Any) -> None:
        self._seq += 1
        fields: dict[str, Any] = {"tag": 1, "format": "jpeg", "width": 640, "height": 480, **changes}
        self.zipper.receive(
            Frame(source=source, seq=self._seq, captured_ns=0, payload=payload, **fields),
            lossless=bool(self._seq % 2),
        )


async def asked(box: Box, *arguments: Any) -> "asyncio.Task[Any]":
    task = asyncio.create_task(box.snapshots.take(*arguments))
    while not box.zipper._router.observers:
        await asyncio.sleep(0)
    return task


async def test_a_jpeg_is_given_as_it_came(ring: RingWriter) -> None:
    box = Box(ring)
    box.picture(b"before")
    task = await asked(box, "camera")
    box.picture(b"of another camera", "other")
    box.picture(b"{}", format="json", width=0, height=0)
    box.picture(b"this one")
    box.picture(b"after")
    taken = await task
    assert (taken.payload, taken.content_type) == (b"this one", "image/jpeg")
    assert box.decoder.asked == []
    assert (box.zipper._router.observers, box.zipper.outstanding, ring.used) == ({}, 0, 0)


async def test_two_may_ask_at_once(ring: RingWriter) -> None:
    box = Box(ring)
    first = await asked(box, "camera")
    second = asyncio.create_task(box.snapshots.take("other"))
    await asyncio.sleep(0)
    box.picture(b"two", "other", tag=2)
    box.picture(b"one")
    assert [(await first).payload, (await second).payload] == [b"one", b"two"]


async def test_what_is_no_jpeg_becomes_a_png(ring: RingWriter) -> None:
    box = Box(ring)
    task = await asked(box, "camera")
    box.picture(bytes(64 * 48), format="gray", width=64, height=48)
    taken = await task
    assert taken.content_type == "image/png"
    assert box.decoder.asked == [("rgb", 64, 48)]
    with Image.open(io.BytesIO(taken.payload)) as image:
        assert (image.format, image.size, image.mode) == ("PNG", (64, 48), "RGB")
        assert image.getpixel((63, 47)) == (255, 0, 0)


async def test_what_the_broker_would_not_take_is_made_smaller(ring: RingWriter) -> None:
    box = Box(ring)
    task = await asked(box, "camera", 100_000)
    box.picture(bytes(100_001))
    taken = await task
    assert taken.content_type == "image/png"
    ((_, width, height),) = box.decoder.asked
    assert width * height * 3 < 100_000
    assert abs(width / height - 640 / 480) < 0.05
    assert len(taken.payload) <= 100_000


async def test_a_camera_that_is_not_there_or_gives_nothing(ring: RingWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.snapshot.FRAME_SECONDS", 0.02)
    box = Box(ring)
    with pytest.raises(ConfigError, match="there are: camera, other"):
        await box.snapshots.take("door")
    with pytest.raises(DeviceError, match="camera has given no picture"):
        await box.snapshots.take("camera")
    with pytest.raises(ConfigError, match="too small"):
        await box.snapshots.take("camera", 5000)
    assert box.zipper._router.observers == {}


async def test_nothing_is_held_after_a_failure_or_a_cancellation(ring: RingWriter) -> None:
    box = Box(ring)
    box.decoder.fails = True
    task = await asked(box, "camera")
    box.picture(bytes(3), format="rgb", width=1, height=1)
    with pytest.raises(PeerError):
        await task
    task = await asked(box, "camera")
    task.cancel()
    await asyncio.wait([task])
    assert (box.zipper._router.observers, box.zipper.outstanding, ring.used) == ({}, 0, 0)


@given(st.integers(1, 16_384), st.integers(1, 16_384), st.integers(4096, MAX_SNAPSHOT_BYTES))
def test_a_fitted_size_fits_and_has_pixels(width: int, height: int, max_bytes: int) -> None:
    fitted_width, fitted_height = fitting(width, height, max_bytes)
    assert 1 <= fitted_width <= width
    assert 1 <= fitted_height <= height
    assert fitted_height * (fitted_width * 3 + 1) <= max_bytes


@given(st.integers(1, 20), st.integers(1, 20), st.randoms(use_true_random=False))
def test_a_png_holds_the_pixels_that_went_in(width: int, height: int, chance: Any) -> None:
    rgb = chance.randbytes(width * height * 3)
    with Image.open(io.BytesIO(png(rgb, width, height))) as image:
        image.verify()
    with Image.open(io.BytesIO(png(rgb, width, height))) as image:
        assert image.tobytes() == rgb
