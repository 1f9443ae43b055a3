"""Discovery with a real broker, and somebody who takes its messages as Home Assistant does."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from discovery_schema import check_discovery
from mosquitto import PATIENCE, Mosquitto, Subscriber
from publishing import publisher

from appliance.config import CameraConfig, Config, PeerConfig, ZipperConfig
from appliance.discovery import MAX_DOCUMENTS, Discovery, Incoming, View, cameras_of
from appliance.manifest import SensorSpec
from appliance.mqtt.homeassistant import Box
from appliance.mqtt.topics import Topics
from appliance.publisher import Publisher

BOX = "homeassistant/device/box/config"
PARTS = "homeassistant/device/box/parts/config"
LABEL = SensorSpec(name="label", path="label")


@dataclass
class Running:
    name: str = "parts"
    observes: tuple[int, ...] = (1,)
    emits: Mapping[int, bool] = field(default_factory=lambda: {16: True})
    sensors: tuple[SensorSpec, ...] = (LABEL,)


@dataclass
class Inside:
    """What there is in the box."""

    handlers: list[Running] = field(default_factory=lambda: [Running()])
    cameras: dict[str, int | None] = field(default_factory=lambda: {"camera": 1})
    deployed: list[str] = field(default_factory=list)
    ready: bool = True

    @property
    def view(self) -> View:
        return View(
            handlers=lambda: self.handlers,
            cameras=lambda: self.cameras,
            deployed=lambda: self.deployed,
            ready=lambda: self.ready,
        )


class HomeAssistant(Subscriber):
    """Hears everything; what it has been told, by topic."""

    def documents(self) -> dict[str, Any]:
        told = {}
        for message in self.received:
            if message.topic.startswith("homeassistant/"):
                assert message.qos == 1
                told.pop(message.topic, None)
                if message.payload:
                    told[message.topic] = json.loads(message.payload)
        return told

    async def told(self, *topics: str) -> dict[str, Any]:
        """Wait until it knows these and no others; what they say."""
        await self.until(lambda: set(self.documents()) == set(topics))
        for topic, document in self.documents().items():
            check_discovery(topic, document)
        return self.documents()


class BrokersEars:
    """A connection that hears, as the appliance's own one does."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.calls: dict[str, Callable[[Incoming], None]] = {}

    def listen(self, filters: Iterable[str], on_message: Callable[[Incoming], None]) -> None:
        self.calls |= dict.fromkeys(filters, on_message)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        async with aiomqtt.Client("127.0.0.1", self._port) as client:
            for topic in self.calls:
                await client.subscribe(topic, qos=1)
            task = asyncio.create_task(self._hear(client))
            yield
            task.cancel()
            await asyncio.wait([task])

    async def _hear(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            self.calls[str(message.topic)](message)  # type: ignore[arg-type] - a payload may be more than bytes


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    return tmp_path / "homeassistant.json"


@asynccontextmanager
async def voice(broker: Mosquitto, tmp_path: Path) -> AsyncIterator[Publisher]:
    async with publisher(broker.url, tmp_path / "spool.db", also=("homeassistant",)) as publishing:
        yield publishing


def discovery(publishing: Publisher, inside: Inside, memory: Path, **options: Any) -> Discovery:
    readable = options.pop("readable", True)
    box = Box(Topics("appliance", "box"), "homeassistant", "0.2.0", readable, temperature=True)
    options = {"on": True, "refresh_seconds": 0.01, **options}
    return Discovery(box, inside.view, publishing, memory, **options)


def removed(document: Mapping[str, Any], component: str) -> bool:
    return bool(document["components"].get(component) == {"platform": "sensor"})


def given(memory: Path, content: bytes) -> None:
    memory.write_bytes(content)


def remembered(memory: Path) -> set[str]:
    return {*json.loads(memory.read_bytes())}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_box_appears_and_follows_what_is_in_it(broker: Mosquitto, tmp_path: Path, memory: Path) -> None:
    inside = Inside()
    async with (
        HomeAssistant(broker.port) as home,
        voice(broker, tmp_path) as publishing,
        discovery(publishing, inside, memory),
    ):
        told = await home.told(BOX, PARTS)
        assert set(told[PARTS]["components"]) == {"sensor.camera.label"}
        inside.deployed.append("parts")
        inside.cameras["second"] = 1
        await home.until(lambda: "update" in home.documents()[PARTS]["components"])
        told = await home.told(BOX, PARTS)
        assert {"camera.camera", "camera.second"} < set(told[BOX]["components"])
        assert set(told[PARTS]["components"]) == {"sensor.camera.label", "sensor.second.label", "update"}
        del inside.cameras["second"]
        await home.until(lambda: home.documents()[PARTS]["components"]["sensor.second.label"] == {"platform": "sensor"})
        inside.handlers.clear()
        inside.deployed.clear()
        await home.told(BOX)
        await until(lambda: "parts" not in memory.read_text())
    async with HomeAssistant(broker.port) as late:
        await late.told(BOX)


async def test_nothing_is_said_again_without_need(broker: Mosquitto, tmp_path: Path, memory: Path) -> None:
    inside = Inside()
    async with (
        HomeAssistant(broker.port) as home,
        voice(broker, tmp_path) as publishing,
        discovery(publishing, inside, memory),
    ):
        await home.told(BOX, PARTS)
        inside.deployed.append("count")
        await home.told(BOX, PARTS, "homeassistant/device/box/count/config")
        assert [len(home.states(topic)) for topic in (BOX, PARTS)] == [1, 1]


async def test_home_assistants_birth_has_everything_said_again(broker: Mosquitto, tmp_path: Path, memory: Path) -> None:
    ears = BrokersEars(broker.port)
    async with (
        HomeAssistant(broker.port) as home,
        voice(broker, tmp_path) as publishing,
        discovery(publishing, Inside(), memory, ears=ears, on=False) as running,
        aiomqtt.Client("127.0.0.1", broker.port) as client,
        AsyncExitStack() as stack,
    ):
        assert await publishing.drained(PATIENCE)
        assert not ears.calls, "whoever has it switched off need not allow it"
        running.on = True
        await home.until(lambda: len(home.states(PARTS)) == 1)
        await stack.enter_async_context(ears.open())
        await client.publish("homeassistant/status", "offline", qos=1)
        await client.publish("homeassistant/status", b"\xff" * 1000, qos=1)
        await client.publish("homeassistant/status", "online", qos=1)
        await home.until(lambda: len(home.states(PARTS)) == 2)
        await client.publish("homeassistant/status", "online", qos=1)
        await home.until(lambda: len(home.states(PARTS)) == 3)
        assert len(set(home.states(PARTS))) == len(set(home.states(BOX))) == 1


async def test_what_a_former_run_announced_is_taken_back(broker: Mosquitto, tmp_path: Path, memory: Path) -> None:
    async with HomeAssistant(broker.port) as home:
        async with voice(broker, tmp_path) as publishing, discovery(publishing, Inside(), memory):
            await home.told(BOX, PARTS)
        inside = Inside(handlers=[], cameras={}, ready=False)
        async with voice(broker, tmp_path) as publishing, discovery(publishing, inside, memory):
            assert await publishing.drained(PATIENCE)
            assert set(home.documents()) == {BOX, PARTS}, "what is not complete takes nothing back"
            inside.ready = True
            await home.told(BOX)
            await home.until(lambda: removed(home.documents()[BOX], "camera.camera"))
            told = home.documents()
            assert set(told[BOX]["components"]) == {"problem", "temperature", "camera.camera"}


async def test_switched_off_it_takes_back_all_and_says_no_more(broker: Mosquitto, tmp_path: Path, memory: Path) -> None:
    async with HomeAssistant(broker.port) as home:
        async with voice(broker, tmp_path) as publishing, discovery(publishing, Inside(), memory) as running:
            await home.told(BOX, PARTS)
            running.on = False
            await home.told()
            await until(lambda: not memory.exists())
            running.on = True
            await home.told(BOX, PARTS)
        async with voice(broker, tmp_path) as publishing, discovery(publishing, Inside(), memory, on=False):
            await home.told()
            await until(lambda: not memory.exists())
        heard = len(home.received)
        async with voice(broker, tmp_path) as publishing, discovery(publishing, Inside(), memory, on=False):
            publishing.set_retained(publishing.topics.status, {"state": "ready"})
            await home.until(lambda: home.states("/status")[-1:] == [b'{"state":"ready"}'])
            assert not [message for message in home.received[heard:] if message.topic.startswith("homeassistant")]


async def test_what_cannot_be_remembered_is_not_announced(
    broker: Mosquitto, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory = tmp_path / "absent" / "homeassistant.json"
    async with (
        HomeAssistant(broker.port) as home,
        voice(broker, tmp_path) as publishing,
        discovery(publishing, Inside(), memory),
    ):
        await until(lambda: "cannot be written" in caplog.text)
        assert await publishing.drained(PATIENCE)
        assert home.documents() == {}
        memory.parent.mkdir()
        await home.told(BOX, PARTS)
        assert caplog.text.count("cannot be written") == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": 1}', b"\xff", b"{" * 100_000])
async def test_a_damaged_memory_is_begun_anew(
    broker: Mosquitto, tmp_path: Path, memory: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    given(memory, content)
    async with (
        HomeAssistant(broker.port) as home,
        voice(broker, tmp_path) as publishing,
        discovery(publishing, Inside(), memory),
    ):
        await home.told(BOX, PARTS)
    assert "event=discovery_forgotten" in caplog.text
    assert remembered(memory) == {BOX, PARTS}


async def test_topics_of_another_prefix_are_not_ours_to_clear(broker: Mosquitto, tmp_path: Path, memory: Path) -> None:
    given(memory, b'{"ha/device/box/config": {"problem": "sensor"}, "homeassistant/device/b/config": {}}')
    async with (
        HomeAssistant(broker.port) as home,
        voice(broker, tmp_path) as publishing,
        discovery(publishing, Inside(), memory),
    ):
        await home.told(BOX, PARTS)
        assert remembered(memory) == {BOX, PARTS}


async def test_results_in_cbor_are_told_to_have_no_sensors(
    broker: Mosquitto, tmp_path: Path, memory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        HomeAssistant(broker.port) as home,
        voice(broker, tmp_path) as publishing,
        discovery(publishing, Inside(deployed=["parts"]), memory, readable=False),
    ):
        told = await home.told(BOX, PARTS)
        assert set(told[PARTS]["components"]) == {"update"}
    assert caplog.text.count("mqtt.format") == 1


async def test_too_much_is_left_out_and_told(
    broker: Mosquitto, tmp_path: Path, memory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    long = tuple(SensorSpec(name=f"s{number}", path=".".join(["k" * 64] * 8)) for number in range(16))
    inside = Inside([Running(f"h{number:03}") for number in range(MAX_DOCUMENTS)], {f"c{n}": 1 for n in range(9)})
    inside.handlers[0].sensors = long
    async with (
        HomeAssistant(broker.port) as home,
        voice(broker, tmp_path) as publishing,
        discovery(publishing, inside, memory),
    ):
        await home.until(lambda: len({m.topic for m in home.received if "/device/" in m.topic}) == MAX_DOCUMENTS)
        assert 0 < len(home.documents()["homeassistant/device/box/h000/config"]["components"]) < 9 * 16
    assert "handlers are announced" in caplog.text
    assert "h000/config has no room" in caplog.text


def test_the_cameras_of_a_configuration() -> None:
    credential = "a-secret-of-some-length"
    peers = (
        PeerConfig(name="gate", credential=credential, roles=("source",), emits=(7,)),
        PeerConfig(name="yard", credential=credential, roles=("source", "sink"), emits=(7, 8)),
        PeerConfig(name="counter", credential=credential, roles=("handler",), emits=(9,)),
    )
    config = Config(cameras=(CameraConfig(name="front", tag=2),), zipper=ZipperConfig(peers=peers))
    assert cameras_of(config) == {"gate": 7, "yard": None, "front": 2}
