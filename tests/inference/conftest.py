"""Models, pictures and the ring they lie in."""

import hashlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from appliance.inference.model import ModelSpec
from appliance.inference.runtime import RUNTIMES
from appliance.ipc.ring import FrameRef, RingReader, RingWriter

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"
RING_BYTES = 8 << 20

Save = Callable[..., ModelSpec]


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    """Every runtime there is, one after the other."""
    name: str = request.param
    if importlib.util.find_spec(RUNTIMES[name].package) is None:
        pytest.skip(f"the runtime {name} is not installed: {RUNTIMES[name].remedy}")
    return name


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes a model to a file and names it as a configuration would."""

    def save(content: bytes, name: str = "model.tflite", **fields: object) -> ModelSpec:
        path = tmp_path / name
        path.write_bytes(content)
        return ModelSpec(path, hashlib.sha256(content).hexdigest(), **fields)  # type: ignore[arg-type]

    return save


@pytest.fixture
def ring() -> Iterator[RingWriter]:
    with RingWriter(RING_BYTES) as ring:
        yield ring


@pytest.fixture
def reader(ring: RingWriter) -> RingReader:
    return RingReader(ring.fd)


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
