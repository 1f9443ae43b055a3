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
    """A broker that is running."""
    with Mosquitto(tmp_path / "broker") as running:
        yield running


@pytest.fixture
def absent_broker(tmp_path: Path, mosquitto_binary: str) -> Iterator[Mosquitto]:
    """A broker that is yet to be started."""
    broker = Mosquitto(tmp_path / "broker")
    yield broker
    broker.kill()
