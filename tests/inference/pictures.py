"""Pictures, and how they get into the ring."""

from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from appliance.ipc.ring import FrameRef, RingWriter

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"


def samples(width: int, height: int, seed: int = 0) -> np.ndarray:
    """A smooth picture, which survives JPEG: height x width x 3 samples."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    return np.array(small.resize((width, height), Image.Resampling.BICUBIC))


def write(ring: RingWriter, picture: np.ndarray, format: str = "rgb") -> FrameRef:
    """Put a picture of height x width x channels into the ring, as a frame's payload."""
    height, width, channels = picture.shape
    if format == "jpeg":
        colours = ("GRAY", "Gray") if channels == 1 else ("RGB", "420")
        payload = simplejpeg.encode_jpeg(np.ascontiguousarray(picture), 95, *colours)
    else:
        payload = picture.tobytes()
    frame = ring.write(payload, format, width, height)
    assert frame is not None, "the ring of the test is too small"
    return frame


def write_file(ring: RingWriter, path: Path) -> FrameRef:
    """Put an image file into the ring as a JPEG."""
    return write(ring, np.array(Image.open(path).convert("RGB")), "jpeg")
