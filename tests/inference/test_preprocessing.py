import contextlib
import io
import struct

import numpy as np
import pytest
import simplejpeg
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from pictures import samples, write
from PIL import Image

from appliance.errors import HandlerError, PeerError
from appliance.inference import preprocessing
from appliance.inference.messages import PIXEL_BYTES, Crop, GetPixels, TensorInfo, View
from appliance.inference.preprocessing import PADDING, PictureInput, letterbox, pixels
from appliance.ipc.ring import FrameRef, RingReader, RingWriter

WHOLE = View()
LETTERBOX = View(fit="letterbox")
shared_ring = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
sides = st.integers(1, 4000)


def info(height: int, width: int, channels: int = 3, dtype: str = "uint8") -> TensorInfo:
    nbytes = height * width * channels * np.dtype(dtype).itemsize
    return TensorInfo("picture", dtype, (1, height, width, channels), nbytes, 0.0, 0)


def frame_of(payload: bytes, format: str, width: int, height: int) -> tuple[memoryview, FrameRef]:
    return memoryview(payload), FrameRef(1, 0, len(payload), format, width, height)


def fed(
    picture: np.ndarray, tensor: TensorInfo, view: View = WHOLE, format: str = "rgb", *, unit_range: bool = False
) -> np.ndarray:
    """What a model with that input is fed with a picture."""
    height, width, _ = picture.shape
    payload = simplejpeg.encode_jpeg(picture, 95) if format == "jpeg" else picture.tobytes()
    picture_input = PictureInput([tensor], unit_range=unit_range)
    out = picture_input.buffer()
    picture_input.fill(out, *frame_of(payload, format, width, height), view)
    return out


def test_a_picture_of_the_right_size_is_fed_as_it_is() -> None:
    picture = samples(8, 6)
    assert np.array_equal(fed(picture, info(6, 8)), picture[np.newaxis])


def test_signed_inputs_are_fed_samples_minus_128() -> None:
    picture = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    fed_in = fed(picture, info(16, 16, dtype="int8"))
    assert fed_in.dtype == np.int8
    assert np.array_equal(fed_in[0].astype(int), picture.astype(int) - 128)


def test_real_inputs_are_fed_the_range_around_0() -> None:
    picture = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    fed_in = fed(picture, info(16, 16, dtype="float32"))
    assert fed_in.dtype == np.float32
    assert np.allclose(fed_in[0], (picture.astype(float) - 127.5) / 127.5, atol=1e-6)


def test_real_inputs_are_fed_the_range_from_0_to_1_where_the_model_says_so() -> None:
    picture = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    fed_in = fed(picture, info(16, 16, dtype="float32"), unit_range=True)
    assert np.allclose(fed_in[0], picture / 255, atol=1e-6)


@pytest.mark.parametrize("format", ["rgb", "jpeg"])
def test_a_grey_model_is_fed_luminance(format: str) -> None:
    picture = samples(64, 48)
    grey = np.array(Image.fromarray(picture).convert("L"))
    fed_in = fed(picture, info(48, 64, 1), format=format)
    assert np.abs(fed_in[0, :, :, 0].astype(int) - grey).mean() < 1.5


def test_a_grey_picture_is_fed_to_a_model_of_colours() -> None:
    grey = samples(8, 8)[:, :, :1].copy()
    assert np.array_equal(fed(grey, info(8, 8), format="gray")[0], grey.repeat(3, axis=2))


def test_a_crop_is_the_part_it_names() -> None:
    picture = samples(20, 16)
    assert np.array_equal(fed(picture, info(4, 6), View(Crop(3, 5, 6, 4)))[0], picture[5:9, 3:9])


@pytest.mark.parametrize("target", [30, 120, 224])
def test_a_crop_of_a_jpeg_is_that_part_at_every_scale_of_the_decoder(target: int) -> None:
    picture = samples(640, 480)
    crop = Crop(100, 40, 320, 400)
    expected = Image.fromarray(picture[40:440, 100:420]).resize((target, target), Image.Resampling.BILINEAR)
    fed_in = fed(picture, info(target, target), View(crop), "jpeg")[0]
    assert np.abs(fed_in.astype(int) - np.asarray(expected)).mean() < 2


def test_large_jpegs_are_decoded_small(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    def decode(*arguments: object, **options: object) -> np.ndarray:
        decoded = simplejpeg._jpeg.decode_jpeg(*arguments, **options)
        shapes.append(decoded.shape)
        return decoded

    monkeypatch.setattr(simplejpeg, "decode_jpeg", decode)
    fed(samples(1280, 960), info(224, 224), format="jpeg")
    assert shapes == [(240, 320, 3)]


def test_a_small_picture_is_enlarged() -> None:
    picture = samples(10, 10)
    expected = np.asarray(Image.fromarray(picture).resize((100, 100), Image.Resampling.BILINEAR))
    assert np.abs(fed(picture, info(100, 100), format="jpeg")[0].astype(int) - expected).mean() < 3


def test_letterbox_pads_evenly_with_grey() -> None:
    picture = samples(16, 8)
    fed_in = fed(picture, info(16, 16), LETTERBOX)[0]
    assert np.array_equal(fed_in[4:12], picture)
    assert (fed_in[:4] == PADDING).all()
    assert (fed_in[12:] == PADDING).all()


def test_letterbox_goes_by_the_proportions_of_the_crop() -> None:
    picture = samples(16, 16)
    fed_in = fed(picture, info(8, 8), View(Crop(0, 0, 4, 8), "letterbox"))[0]
    assert np.array_equal(fed_in[:, 2:6], picture[:8, :4])


@settings(deadline=None)
@given(sides, sides, sides, sides)
@example(4000, 1, 10, 4000)
def test_letterbox_keeps_the_proportions_and_fills_one_axis(pw: int, ph: int, tw: int, th: int) -> None:
    x, y, width, height = letterbox((pw, ph), (tw, th))
    assert x >= 0
    assert y >= 0
    assert 1 <= width <= tw - x
    assert 1 <= height <= th - y
    assert width == tw or height == th
    assert 0 <= (tw - width) - 2 * x <= 1
    assert 0 <= (th - height) - 2 * y <= 1
    scale = min(tw / pw, th / ph)
    assert abs(width - pw * scale) <= 1
    assert abs(height - ph * scale) <= 1


@settings(deadline=None)
@given(st.integers(-5, 25), st.integers(-5, 25), st.integers(-5, 25), st.integers(-5, 25))
def test_a_crop_is_inside_the_picture_or_the_handlers_fault(x: int, y: int, width: int, height: int) -> None:
    picture = samples(16, 12)
    inside = x >= 0 and y >= 0 and 0 < width <= 16 - x and 0 < height <= 12 - y
    if inside or width == 0:
        fed(picture, info(4, 4), View(Crop(x, y, width, height)))
    else:
        with pytest.raises(HandlerError, match="not inside the picture of 16x12"):
            fed(picture, info(4, 4), View(Crop(x, y, width, height)))


def test_a_fit_that_is_not_known_is_the_handlers_fault() -> None:
    with pytest.raises(HandlerError, match="stretch or letterbox, not 'squeeze'"):
        fed(samples(8, 8), info(8, 8), View(fit="squeeze"))


@pytest.mark.parametrize(
    "tensors",
    [
        [info(8, 8), info(8, 8)],
        [info(8, 8, 4)],
        [info(8, 8, dtype="int32")],
        [info(0, 8)],
        [TensorInfo("vector", "float32", (1, 10), 40, 0, 0)],
        [TensorInfo("batch", "uint8", (2, 8, 8, 3), 384, 0, 0)],
    ],
)
def test_a_model_that_takes_no_picture_is_told_from_one_that_does(tensors: list[TensorInfo]) -> None:
    with pytest.raises(HandlerError, match="the model takes no picture but"):
        PictureInput(tensors)


# --- pictures that are not what they say


def refused(payload: bytes, format: str, width: int, height: int) -> str:
    picture_input = PictureInput([info(8, 8)])
    with pytest.raises(PeerError) as caught:
        picture_input.fill(picture_input.buffer(), *frame_of(payload, format, width, height), WHOLE)
    return str(caught.value)


def test_data_is_not_a_picture() -> None:
    assert "format 'cbor' is not a picture" in refused(b"\xa0", "cbor", 1, 1)
    assert "sides are 1 to 8192" in refused(b"\xa0", "cbor", 0, 0)


@pytest.mark.parametrize("length", [0, 191, 193])
def test_raw_samples_have_the_size_of_the_picture(length: int) -> None:
    assert refused(bytes(length), "rgb", 8, 8) == f"a rgb picture of {length} bytes that should have 192"


def test_what_is_no_jpeg_is_refused() -> None:
    for payload in (b"", b"\xff\xd8", b"\x89PNG" + bytes(100), bytes(1000)):
        assert "not a JPEG" in refused(payload, "jpeg", 8, 8)


def test_a_jpeg_of_another_size_than_its_frame_says_is_refused() -> None:
    jpeg = simplejpeg.encode_jpeg(samples(8, 8))
    assert refused(jpeg, "jpeg", 16, 8) == "a JPEG of 8x8 in a frame that says 16x8"


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    jpeg = simplejpeg.encode_jpeg(samples(16, 16))
    start = jpeg.index(b"\xff\xc0") + 5  # height and width in the frame header
    bomb = jpeg[:start] + (65_000).to_bytes(2, "big") * 2 + jpeg[start + 4 :]
    assert simplejpeg.decode_jpeg_header(bomb)[:2] == (65_000, 65_000)
    assert "sides are 1 to 8192" in refused(bomb, "jpeg", 65_000, 65_000)
    assert "a JPEG of 65000x65000 in a frame that says 16x16" in refused(bomb, "jpeg", 16, 16)


def test_a_picture_that_would_decode_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocessing, "MAX_DECODED_BYTES", 100 * 100 * 3)
    picture = samples(400, 400)
    fed(picture, info(100, 100), format="jpeg")
    with pytest.raises(PeerError, match="decodes to 400x400 is over"):
        fed(picture, info(100, 100), View(Crop(0, 0, 100, 100)), format="jpeg")


def of_scans(count: int) -> bytes:
    """A progressive JPEG of 8x8 pixels, valid, and grey all over: each scan refines one coefficient by one bit."""

    def segment(marker: int, data: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data

    tables = [segment(0xDB, b"\0" + b"\1" * 64), segment(0xC2, bytes.fromhex("08 0008 0008 01 011100"))]
    tables += [segment(0xC4, kind + b"\1" + bytes(16)) for kind in (b"\x00", b"\x10")]
    steps = [(0, 0)] + [(place, low) for low in range(13, -1, -1) for place in range(1, 64)]
    scans = [
        segment(0xDA, bytes((1, 1, 0, place, place, ((low + 1) % 14 << 4 if place else 0) | low))) + b"\x7f"
        for place, low in steps[:count]
    ]
    return b"\xff\xd8" + b"".join((*tables, *scans)) + b"\xff\xd9"


def test_a_jpeg_of_very_many_scans_is_refused() -> None:
    """A small file could keep the decoder busy for longer than an answer may take."""
    most = preprocessing.MAX_SCANS
    for payload, is_refused in ((of_scans(most), False), (of_scans(most + 1), True)):
        frame = FrameRef(0, 0, len(payload), "jpeg", 8, 8)
        request = GetPixels(0, frame, Crop(), "gray", 8, 8)
        if is_refused:
            with pytest.raises(PeerError, match=f"a JPEG of {most + 1} scans is over the limit"):
                pixels(memoryview(payload), request)
        else:
            assert pixels(memoryview(payload), request) == bytes([128]) * 64


def test_a_truncated_jpeg_is_refused() -> None:
    jpeg = simplejpeg.encode_jpeg(samples(64, 64))
    for length in (len(jpeg) - 2, len(jpeg) // 2, len(jpeg) // 4 * 3):
        assert "JPEG" in refused(jpeg[:length], "jpeg", 64, 64)


def test_padding_that_webcams_write_is_tolerated() -> None:
    picture = samples(64, 64)
    jpeg = simplejpeg.encode_jpeg(picture, 95)
    padded = jpeg[:-2] + bytes(20) + jpeg[-2:]
    with pytest.raises(ValueError, match="extraneous bytes"):
        simplejpeg.decode_jpeg(padded)
    picture_input = PictureInput([info(64, 64)])
    out = picture_input.buffer()
    picture_input.fill(out, *frame_of(padded, "jpeg", 64, 64), WHOLE)
    assert np.abs(out[0].astype(int) - picture).mean() < 3


def test_a_cmyk_jpeg_is_decoded() -> None:
    file = io.BytesIO()
    Image.fromarray(samples(16, 16)).convert("CMYK").save(file, "JPEG")
    picture_input = PictureInput([info(16, 16)])
    picture_input.fill(picture_input.buffer(), *frame_of(file.getvalue(), "jpeg", 16, 16), WHOLE)


JPEG = simplejpeg.encode_jpeg(samples(40, 24), 80)


@settings(deadline=None)
@given(st.integers(0, len(JPEG) - 1), st.binary(min_size=1, max_size=20), st.sampled_from([WHOLE, LETTERBOX]))
def test_a_damaged_jpeg_is_a_picture_or_the_peers_fault(at: int, damage: bytes, view: View) -> None:
    payload = JPEG[:at] + damage + JPEG[at + len(damage) :]
    picture_input = PictureInput([info(16, 16)])
    out = picture_input.buffer()
    with contextlib.suppress(PeerError):
        picture_input.fill(out, *frame_of(payload, "jpeg", 40, 24), view)


integers = st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 70)


@shared_ring
@given(integers, integers, integers, integers, st.sampled_from(["jpeg", "rgb", "gray", "cbor", ""]))
def test_a_frame_is_a_picture_or_refused(
    ring: RingWriter, reader: RingReader, offset: int, length: int, width: int, height: int, format: str
) -> None:
    frame = FrameRef(1, offset, length, format, width, height)
    picture_input = PictureInput([info(8, 8)])
    with contextlib.suppress(PeerError, IndexError):
        picture_input.fill(picture_input.buffer(), reader.view(frame), frame, WHOLE)


# --- pixels for guests


def ask_pixels(frame: FrameRef, crop: Crop, format: str, width: int, height: int) -> GetPixels:
    return GetPixels(1, frame, crop, format, width, height)


def test_pixels_are_rows_of_samples(ring: RingWriter, reader: RingReader) -> None:
    picture = samples(20, 10)
    frame = write(ring, picture)
    assert pixels(reader.view(frame), ask_pixels(frame, Crop(), "rgb", 20, 10)) == picture.tobytes()
    part = pixels(reader.view(frame), ask_pixels(frame, Crop(2, 3, 5, 4), "rgb", 5, 4))
    assert part == picture[3:7, 2:7].tobytes()
    grey = pixels(reader.view(frame), ask_pixels(frame, Crop(), "gray", 20, 10))
    assert grey == Image.fromarray(picture).convert("L").tobytes()


@settings(deadline=None)
@given(integers, integers, st.sampled_from(["rgb", "gray", "bgr32f", "jpeg"]))
@example(2048, 2048, "rgb")
def test_pixels_are_few_enough_or_refused(width: int, height: int, format: str) -> None:
    picture = samples(4, 4)
    payload, frame = frame_of(picture.tobytes(), "rgb", 4, 4)
    channels = PIXEL_BYTES.get(format, 0)
    possible = channels > 0 and width > 0 and height > 0 and width * height * channels <= 12 << 20
    assume(not possible or width * height < 1 << 22)
    if possible:
        assert len(pixels(payload, ask_pixels(frame, Crop(), format, width, height))) == width * height * channels
    else:
        with pytest.raises(HandlerError):
            pixels(payload, ask_pixels(frame, Crop(), format, width, height))


def brought(data: bytes, format: str = "rgb", size: tuple[int, int] = (4, 3)) -> bytes:
    """Pixels of a picture that a guest brings, whatever the frame is."""
    return pixels(None, GetPixels(1, FrameRef(1, 0, 0, "json", 0, 0), Crop(), format, *size, data))


def as_file(picture: np.ndarray, format: str, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).convert(mode).save(file, format)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "1", "I;16"])
def test_a_png_of_any_kind_becomes_rgb(mode: str) -> None:
    picture = samples(16, 12)
    if mode == "I;16":
        file = io.BytesIO()
        Image.fromarray(picture[:, :, 0].astype(np.uint16)).save(file, "PNG")
        data = file.getvalue()
    else:
        data = as_file(picture, "PNG", mode)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert brought(data, "rgb", (16, 12)) == expected.tobytes()


def test_the_layouts_of_pixels() -> None:
    picture = samples(4, 3)
    data = as_file(picture, "PNG")
    rgb = np.frombuffer(brought(data), np.uint8).reshape(3, 4, 3)
    assert np.array_equal(rgb, picture)
    assert brought(data, "bgr") == picture[:, :, ::-1].tobytes()
    assert brought(data, "rgb32f") == (picture / 255).astype("<f4").tobytes()
    assert brought(data, "bgr32f") == (picture[:, :, ::-1] / 255).astype("<f4").tobytes()


def test_a_jpeg_that_is_brought_is_decoded_as_a_frame_is() -> None:
    payload = simplejpeg.encode_jpeg(samples(64, 48), 95)
    frame = FrameRef(1, 0, len(payload), "jpeg", 64, 48)
    request = GetPixels(1, frame, Crop(), "rgb", 7, 5)
    assert brought(payload, "rgb", (7, 5)) == pixels(memoryview(payload), request)


def header(width: int, height: int, chunk: bytes = b"IHDR") -> bytes:
    return preprocessing.PNG_HEADER.pack(preprocessing.PNG_SIGNATURE, 13, chunk, width, height)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GIF89a",
        as_file(samples(8, 8), "BMP"),
        preprocessing.PNG_SIGNATURE,
        header(8, 8, b"IDAT"),
        header(8, 8),
        header(0, 8) + bytes(40),
        header(preprocessing.MAX_PICTURE_SIDE + 1, 8) + bytes(40),
        header(8000, 8000) + bytes(40),
        as_file(samples(8, 8), "PNG")[:60],
    ],
    ids=["empty", "gif", "bmp", "no-header", "no-ihdr", "cut", "no-width", "wide", "many-pixels", "half"],
)
def test_what_is_no_picture_is_refused_when_it_is_brought(data: bytes) -> None:
    with pytest.raises(PeerError):
        brought(data)


@settings(deadline=None)
@given(st.sampled_from(["PNG", "JPEG"]), st.data())
def test_a_damaged_picture_that_is_brought_decodes_or_is_refused(format: str, data: st.DataObject) -> None:
    file = bytearray(as_file(samples(24, 16), format))
    for _ in range(data.draw(st.integers(1, 4))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    del file[data.draw(st.integers(1, len(file))) :]
    with contextlib.suppress(PeerError, HandlerError):
        assert len(brought(bytes(file))) == 36
