"""A picture becomes pixels or a model's input tensor: decode, crop, resize, convert.

What a model is fed: ``uint8`` inputs get the raw samples 0..255, ``int8`` inputs the samples minus 128, and
``float32`` inputs the samples mapped to [-1, 1], or to [0, 1] where the model's ``unit_range`` says so. For
quantised inputs that is what scale and zero point mean in all image models of the Coral and TFLite
collections, whichever real range they were trained on. *Letterbox* keeps the proportions, centres the
picture and pads with mid-grey (128, the real value 0 of models trained on [-1, 1]).
"""

import io
import math
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, PngImagePlugin

from appliance.errors import HandlerError, PeerError
from appliance.inference.messages import (
    LETTERBOX,
    MAX_TENSOR_BYTES,
    PIXEL_BYTES,
    STRETCH,
    Crop,
    GetPixels,
    TensorInfo,
    View,
)
from appliance.ipc.ring import FrameRef

MAX_PICTURE_SIDE = 8192
"""A JPEG of more pixels on a side is refused by its header, before anything is allocated for it."""
MAX_DECODED_BYTES = 64 << 20
"""Samples a picture may decode to, after the decoder's own scaling."""
MAX_SCANS = 64
"""Of a JPEG. Each goes over the whole picture, however little it holds: 883 of them, in 195 KB, took 13 s. Encoders
make ten."""
SCAN = b"\xff\xda"
"""How one begins; compressed data never hold this."""
CHANNELS = {"gray": 1, "rgb": 3}
MODES = {1: "L", 3: "RGB"}
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_HEADER = struct.Struct(">8sI4sII")
"""Signature, then the first chunk: its length, its name, and width and height."""
PADDING = 128
PNG_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError, struct.error, zlib.error)
"""What Pillow raises for damaged files."""
TOLERATED = "before marker 0xd9"
"""What libjpeg says of padding at the end of the picture, which some webcams write; such pictures are whole."""

Array = npt.NDArray[Any]
Samples = npt.NDArray[np.uint8]
Size = tuple[int, int]
"""Width and height."""


def warm_up() -> None:
    """Decode and resize a picture of our own: libraries import what they need when they are first used."""
    jpeg = simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8))
    frame = FrameRef(0, 0, len(jpeg), "jpeg", 16, 16)
    for format in CHANNELS:
        pixels(memoryview(jpeg), GetPixels(0, frame, Crop(), format, 3, 3))


def letterbox(picture: Size, target: Size) -> tuple[int, int, int, int]:
    """Where a picture of that size lies in the target: x, y, width and height in pixels of the target."""
    scale = min(target[0] / picture[0], target[1] / picture[1])
    width = min(target[0], max(1, round(picture[0] * scale)))
    height = min(target[1], max(1, round(picture[1] * scale)))
    return (target[0] - width) // 2, (target[1] - height) // 2, width, height


def pixels(payload: memoryview | None, request: GetPixels) -> bytes:
    """Rows of samples, as ``request`` asks: (a part of) the picture, stretched to its width x height.

    HandlerError for a request that cannot be met, PeerError for a picture that cannot be decoded.
    """
    width, height, size = request.width, request.height, PIXEL_BYTES.get(request.format)
    if size is None:
        raise HandlerError(f"pixels come as {', '.join(PIXEL_BYTES)}, not as {request.format!r}")
    if width < 1 or height < 1 or width * height * size > MAX_TENSOR_BYTES:
        raise HandlerError(f"{width}x{height} pixels cannot be had: 1x1 to {MAX_TENSOR_BYTES} bytes")
    frame = request.frame
    if request.data is not None:
        payload, frame = memoryview(request.data), described(request.data)
    assert payload is not None
    channels = CHANNELS.get(request.format, 3)
    return laid_out(Picture(payload, frame, channels).resized(request.crop, (width, height)), request.format)


def laid_out(samples: Samples, format: str) -> bytes:
    """RGB (or grey) samples in the order and type of one of PIXEL_BYTES."""
    if format.startswith("bgr"):
        samples = samples[:, :, ::-1]
    if format.endswith("32f"):
        return (samples / np.float32(255)).astype("<f4").tobytes()
    return samples.tobytes()


def described(data: bytes) -> FrameRef:
    """A picture file, JPEG or PNG, as a frame would be described; PeerError where it is neither."""
    if data.startswith(PNG_SIGNATURE):
        if len(data) < PNG_HEADER.size:
            raise PeerError("a PNG without a header")
        _, _, chunk, width, height = PNG_HEADER.unpack_from(data)
        if chunk != b"IHDR":
            raise PeerError("a PNG without a header")
        return FrameRef(0, 0, len(data), "png", width, height)
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError) as error:  # KeyError: a subsampling it has no name for
        raise PeerError(f"a picture that is neither a JPEG nor a PNG: {error}") from error
    return FrameRef(0, 0, len(data), "jpeg", width, height)


class PictureInput:
    """Fills the input tensor of one model with pictures."""

    def __init__(self, inputs: list[TensorInfo], *, unit_range: bool = False) -> None:
        """HandlerError where the model's input is not one picture: 1 x height x width x (1 or 3)."""
        info = inputs[0]
        fits = len(inputs) == 1 and len(info.shape) == 4 and info.shape[0] == 1 and info.shape[3] in MODES
        if not fits or info.dtype not in ("uint8", "int8", "float32") or 0 in info.shape:
            what = ", ".join(f"{info.dtype} {'x'.join(map(str, info.shape))}" for info in inputs)
            raise HandlerError(f"the model takes no picture but {what}: give it tensors")
        _, height, width, self._channels = info.shape
        self.target: Size = (width, height)
        self._info = info
        self._unit_range = unit_range

    def buffer(self) -> Array:
        """A new, unfilled input tensor."""
        return np.empty(self._info.shape, self._info.dtype)

    def fill(self, out: Array, payload: memoryview, frame: FrameRef, view: View) -> None:
        """Write (a view of) a picture into ``out``, an array of the input's shape and dtype.

        PeerError where the picture cannot be decoded, HandlerError where the view does not exist.
        """
        picture = Picture(payload, frame, self._channels)
        if view.fit == STRETCH:
            samples = picture.resized(view.crop, self.target)
        elif view.fit == LETTERBOX:
            x, y, width, height = letterbox(picture.box(view.crop)[2:], self.target)
            samples = np.full(out.shape[1:], PADDING, np.uint8)
            samples[y : y + height, x : x + width] = picture.resized(view.crop, (width, height))
        else:
            raise HandlerError(f"a picture fits by {STRETCH} or {LETTERBOX}, not {view.fit!r}")
        self._convert(samples, out[0])

    def _convert(self, samples: Samples, out: Array) -> None:
        if out.dtype == np.uint8:
            out[:] = samples
        elif out.dtype == np.int8:
            np.bitwise_xor(samples, 0x80, out=out.view(np.uint8))  # minus 128, in two's complement
        else:
            np.multiply(samples, np.float32(1 / 255 if self._unit_range else 1 / 127.5), out=out)
            if not self._unit_range:
                out -= 1


class Picture:
    """The picture of a frame, checked but not yet decoded; ``payload`` must stay as it is until it is."""

    def __init__(self, payload: memoryview, frame: FrameRef, channels: int) -> None:
        """PeerError where the payload is not the picture that ``frame`` says it is."""
        self._channels = channels
        self._format = frame.format
        if not (0 < frame.width <= MAX_PICTURE_SIDE and 0 < frame.height <= MAX_PICTURE_SIDE):
            raise PeerError(f"a picture of {frame.width}x{frame.height}: sides are 1 to {MAX_PICTURE_SIDE}")
        self.size: Size = (frame.width, frame.height)
        if frame.format == "jpeg":
            data = bytes(payload)  # a slot that is written again must not be parsed twice
            self._payload: bytes | memoryview = data
            self._check_header(data)
        elif frame.format == "png":
            self._payload = bytes(payload)
        elif frame.format in CHANNELS:
            self._payload = payload
            expected = frame.width * frame.height * CHANNELS[frame.format]
            if len(payload) != expected:
                raise PeerError(f"a {frame.format} picture of {len(payload)} bytes that should have {expected}")
        else:
            raise PeerError(f"a frame of format {frame.format!r} is not a picture")

    def box(self, crop: Crop) -> tuple[int, int, int, int]:
        """x, y, width and height of a crop; HandlerError where it is not inside the picture."""
        if crop.width == 0:
            return (0, 0, *self.size)
        inside = crop.x >= 0 and crop.y >= 0 and crop.width > 0 and crop.height > 0
        if not inside or crop.x + crop.width > self.size[0] or crop.y + crop.height > self.size[1]:
            where = f"{crop.width}x{crop.height} at {crop.x},{crop.y}"
            raise HandlerError(f"the crop {where} is not inside the picture of {self.size[0]}x{self.size[1]}")
        return crop.x, crop.y, crop.width, crop.height

    def resized(self, crop: Crop, target: Size) -> Samples:
        """A part of the picture, resized by area-weighted bilinear filtering: height x width x channels."""
        x, y, width, height = self.box(crop)
        samples = self._decode((width, height), target)
        # The decoder may have scaled the picture down: the crop is scaled with it, to fractions of a pixel.
        across, down = samples.shape[1] / self.size[0], samples.shape[0] / self.size[1]
        box = (x * across, y * down, (x + width) * across, (y + height) * down)
        image = Image.fromarray(samples.squeeze(2) if samples.shape[2] == 1 else samples)
        if box != (0, 0, *target) or image.size != target:
            image = image.resize(target, Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
        if image.mode != MODES[self._channels]:
            image = image.convert(MODES[self._channels])
        return np.asarray(image).reshape(target[1], target[0], self._channels)

    def _check_header(self, data: bytes) -> None:
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(data)
        except (ValueError, KeyError) as error:  # KeyError: a subsampling it has no name for
            raise PeerError(f"a picture that is not a JPEG: {error}") from error
        if (width, height) != self.size:
            stated = f"{self.size[0]}x{self.size[1]}"
            raise PeerError(f"a JPEG of {width}x{height} in a frame that says {stated}")
        if (scans := data.count(SCAN)) > MAX_SCANS:
            raise PeerError(f"a JPEG of {scans} scans is over the limit of {MAX_SCANS}")

    def _decode(self, part: Size, target: Size) -> Samples:
        """The whole picture, at a size at which ``part`` still has the pixels of ``target``."""
        width, height = self.size
        if self._format == "png":
            return self._decode_png()
        if self._format != "jpeg":
            channels = CHANNELS[self._format]
            return np.frombuffer(self._payload, np.uint8).reshape(height, width, channels)
        least = {
            "min_width": min(width, math.ceil(target[0] * width / part[0])),
            "min_height": min(height, math.ceil(target[1] * height / part[1])),
            "min_factor": 2,  # smaller factors cost the decoder more than they save the resizer
        }
        try:
            high, wide, *_ = simplejpeg.decode_jpeg_header(self._payload, **least)
            if high * wide * self._channels > MAX_DECODED_BYTES:
                raise PeerError(f"a picture that decodes to {wide}x{high} is over {MAX_DECODED_BYTES} bytes")
            return self._decode_jpeg(least)
        except ValueError as error:
            raise PeerError(f"a JPEG that cannot be decoded: {error}") from error

    def _decode_jpeg(self, least: dict[str, int]) -> Samples:
        colours = "GRAY" if self._channels == 1 else "RGB"
        try:
            samples: Samples = simplejpeg.decode_jpeg(self._payload, colours, **least)
        except ValueError as error:
            if TOLERATED not in str(error):
                raise
            samples = simplejpeg.decode_jpeg(self._payload, colours, **least, strict=False)
        return samples

    def _decode_png(self) -> Samples:
        width, height = self.size
        if width * height * CHANNELS["rgb"] > MAX_DECODED_BYTES:
            raise PeerError(f"a picture that decodes to {width}x{height} is over {MAX_DECODED_BYTES} bytes")
        try:
            with PngImagePlugin.PngImageFile(io.BytesIO(self._payload)) as image:  # Image.open would import others
                if image.size != self.size:
                    raise PeerError("a PNG with two sizes")
                return np.asarray(image.convert("RGB"))
        except PNG_ERRORS as error:
            raise PeerError(f"a PNG that cannot be decoded: {error}") from error
