from collections.abc import Iterator
from pathlib import Path

import pytest
from mosquitto import BINARY, Mosquitto

from appliance.fleet.keys import NewKey, make_key
from appliance.fleet.state import TOP_LEVEL


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


@pytest.fixture(scope="session")
def role_keys() -> dict[str, NewKey]:
    """A key for each role of a fleet; making them takes its time, by intention."""
    return {role: make_key("a passphrase") for role in TOP_LEVEL}
