"""The whole appliance, with nothing replaced, against a real broker."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from mosquitto import BINARY, Mosquitto, Subscriber

from appliance.app import Appliance
from appliance.config import CameraConfig, Config, DeviceConfig, HandlerConfig, MqttConfig
from appliance.device.state import open_state
from appliance.summary import Summary

HANDLERS = Path(__file__).parents[2] / "handlers"
PATIENCE = 60.0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    if BINARY is None:
        pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
    with Mosquitto(tmp_path / "broker") as broker:
        yield broker


class Box:
    """An appliance under test, running in this process's loop; its children are real processes."""

    def __init__(self, appliance: Appliance, subscriber: Subscriber, stop: asyncio.Event) -> None:
        self.appliance = appliance
        self.subscriber = subscriber
        self.stop = stop
        self.summary: Summary | None = None

    def results(self) -> list[dict[str, Any]]:
        return [json.loads(message.payload) for message in self.subscriber.results()]

    def state(self, topic: str) -> dict[str, Any]:
        """The newest retained state of a topic of this device."""
        states = self.subscriber.states(topic)
        return json.loads(states[-1]) if states else {}

    async def until(self, enough) -> None:
        """Wait until a condition on what was received, or on the appliance, holds."""
        async with asyncio.timeout(PATIENCE):
            while not enough():
                await asyncio.sleep(0.02)

    async def more_results(self, count: int = 20) -> None:
        """Wait for so many more results than there are now."""
        before = len(self.subscriber.results())
        await self.until(lambda: len(self.subscriber.results()) >= before + count)


def configuration(broker: Mosquitto, *handlers: str, camera: CameraConfig | None = None, **changes: Any) -> Config:
    config = Config(
        device=DeviceConfig(name="box"),
        cameras=(camera or CameraConfig(fps=30),),
        handlers=tuple(HandlerConfig(path=str(HANDLERS / name)) for name in handlers or ("parts",)),
        mqtt=MqttConfig(url=broker.url, stats_seconds=0.5),
    )
    return msgspec.structs.replace(config, **changes)


@pytest.fixture
def start(tmp_path: Path, broker: Mosquitto):
    """``async with start(config) as box``: the appliance runs; leaving the block stops it in good order."""

    @asynccontextmanager
    async def starting(config: Config, reread: Callable[[], Config] | None = None) -> AsyncIterator[Box]:
        # QoS 0: an acknowledgement to a dead broker fails before all is read that it wrote
        async with Subscriber(broker.port, qos=0) as subscriber:
            appliance = Appliance(config, open_state(str(tmp_path / "state")), reread=reread)
            box = Box(appliance, subscriber, asyncio.Event())
            running = asyncio.create_task(appliance.run(box.stop))
            try:
                while not appliance.up.is_set() and not running.done():
                    await asyncio.sleep(0.02)
                yield box
            finally:
                box.stop.set()
                async with asyncio.timeout(PATIENCE):
                    box.summary = await running

    return starting
