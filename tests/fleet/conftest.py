from collections.abc import Iterator
from pathlib import Path

import pytest
from mosquitto import BINARY, Mosquitto
from signing_desk import Desk, Device, new_fleet

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


@pytest.fixture
def quick_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passphrases are stretched a little only."""
    monkeypatch.setattr("appliance.fleet.keys.SCRYPT_LOG_N", 4)


@pytest.fixture
def role_keys(quick_keys: None) -> dict[str, NewKey]:
    """A key for each role of a fleet."""
    return {role: make_key("a passphrase") for role in TOP_LEVEL}


@pytest.fixture
def desk(tmp_path: Path, quick_keys: None, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A new fleet, at a desk where modules are not judged: that takes a process each time."""

    async def good(directory: Path) -> None:
        """Any is."""

    monkeypatch.setattr("appliance.fleet.checks.check_module", good)
    return new_fleet(tmp_path / "shops")


@pytest.fixture
def device(desk: Desk, tmp_path: Path) -> Device:
    """A device that was given the root of the new fleet."""
    return Device.of(desk, tmp_path / "device")
