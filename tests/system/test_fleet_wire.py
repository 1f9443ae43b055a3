"""What a deployment costs on the wire, in bytes: they are counted on their way."""

import os
from pathlib import Path

import pytest
from mosquitto import BINARY, Gate, Mosquitto
from paper_fleet import new_fleet
from signing_desk import MOTION

MODEL_BYTES = 5 << 20
CUSTOM_SECTION = b"\0\x02\x01x"
"""At the end of a module: another module, that does the same."""


@pytest.fixture
def broker(tmp_path: Path) -> Mosquitto:
    if BINARY is None:
        pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
    return Mosquitto(tmp_path / "broker", "allow_anonymous true", "max_packet_size 131072")


async def test_an_upgrade_of_the_module_alone_sends_less_than_a_twentieth(
    tmp_path: Path, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    with broker:
        async with Gate(broker.port) as operators, Gate(broker.port) as devices:
            fleet = new_fleet(tmp_path, broker, monkeypatch, operators.url)
            fleet.url = devices.url
            model = os.urandom(MODEL_BYTES)
            await fleet.sign("1.0.0", model)
            await fleet.send()
            async with fleet.device() as device:
                await device.until_serves("motion", "1.0.0")
                first = [gate.to_broker + gate.from_broker for gate in (operators, devices)]
                await fleet.sign("1.1.0", model, (MOTION / "handler.wasm").read_bytes() + CUSTOM_SECTION)
                await fleet.send()
                await device.until_serves("motion", "1.1.0")
            both = [gate.to_broker + gate.from_broker for gate in (operators, devices)]
    for name, whole, total in zip(("operator", "device"), first, both, strict=True):
        assert MODEL_BYTES < whole < 1.05 * MODEL_BYTES, f"the overhead of the {name}"
        assert total - whole < 0.05 * MODEL_BYTES, f"the upgrade of the {name}"
