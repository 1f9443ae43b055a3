"""Models, pictures and the ring they lie in."""

import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_models import Save

from appliance.inference.model import ModelSpec
from appliance.inference.runtime import RUNTIMES
from appliance.ipc.ring import RingReader, RingWriter

RING_BYTES = 8 << 20


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
