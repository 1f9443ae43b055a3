from collections.abc import Iterator
from pathlib import Path

import pytest
from mosquitto import BINARY, Mosquitto


@pytest.fixture(scope="session")
def mosquitto_binary() -> str:
    if BINARY is None:
        pytest.skip("no mosquitto here: apt-get install mosquitto")
    return BINARY


@pytest.fixture
def broker(tmp_path: Path, mosquitto_binary: str) -> Iterator[Mosquitto]:
    """A broker that is running, and takes messages of 128 KB at most."""
    with Mosquitto(tmp_path / "broker", "allow_anonymous true", "max_packet_size 131072") as running:
        yield running
