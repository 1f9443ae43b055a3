"""A fleet's metadata and files through a real broker, from retained messages to verified bundles on disk."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import aiomqtt
import pytest
from fleet_double import START, Fleet, messages
from mosquitto import PATIENCE, Mosquitto

from appliance.backoff import Backoff
from appliance.config import MqttConfig
from appliance.control import Control
from appliance.deploy.desired import Assignment
from appliance.deploy.download import Downloads
from appliance.deploy.fleet_topics import DEFAULT_CHUNK_BYTES, FleetTopics
from appliance.deploy.metadata import MetadataCache
from appliance.deploy.store import Store
from appliance.deploy.trust import Trust, Verified, VerifiedBundle

TOPICS = FleetTopics("fleet", "farm")
MODEL = os.urandom(2 << 20)


class Box:
    """What a device has of its fleet, by one control connection."""

    def __init__(self, path: Path, control: Control, fleet: Fleet) -> None:
        self.control = control
        self.cache = MetadataCache()
        self.heard: list[str] = []
        self.trust = Trust(path / "trust", fleet.first_root, wall=lambda: START.timestamp() + 60)
        self.store = Store(path, 1 << 30)
        self.downloads = Downloads(TOPICS, control, self.store)
        control.listen([TOPICS.all_metadata], lambda message: self._heard(message.topic, message.payload))

    def _heard(self, topic: str, payload: bytes) -> None:
        file = TOPICS.metadata_of(topic)
        assert file is not None
        self.cache.received(file, payload)

    async def verified(self, fleet: Fleet) -> Verified:
        await until(lambda: self.cache.snapshot() == fleet.metadata)
        return await asyncio.to_thread(self.trust.refresh, self.cache.snapshot())

    async def bundle(self, verified: Verified, assignment: Assignment) -> VerifiedBundle:
        target = verified.target("handlers/detector/1.0.0.json")
        assert target is not None
        file = await self.fetch(target.sha256, target.length)
        return await asyncio.to_thread(verified.bundle, "detector", assignment, target, file)

    async def fetch(self, digest: str, length: int) -> Path:
        async with asyncio.timeout(PATIENCE):
            return await self.downloads.fetch(digest, length, lambda _: None)


def control_of(broker: Mosquitto) -> Control:
    return Control(MqttConfig(url=broker.url), "box", retry=Backoff(0.02, limit=0.02))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


async def publish(broker: Mosquitto, fleet: Fleet) -> None:
    async with aiomqtt.Client("127.0.0.1", broker.port) as operator:
        for topic, payload in messages(fleet, TOPICS).items():
            await operator.publish(topic, payload, qos=1, retain=True)


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.mark.usefixtures("mosquitto_binary")
async def test_a_bundle_comes_through_a_broker_with_small_packets(tmp_path: Path, fleet: Fleet) -> None:
    assignment = fleet.bundle(contents={"model.tflite": MODEL})
    fleet.publish()
    with Mosquitto(tmp_path / "broker", "allow_anonymous true", "max_packet_size 131072") as broker:
        await publish(broker, fleet)
        async with control_of(broker) as control:
            box = Box(tmp_path / "box", control, fleet)
            bundle = await box.bundle(await box.verified(fleet), assignment)
            for file in bundle.bundle.files.values():
                await box.fetch(file.sha256, file.length)
            slot = await asyncio.to_thread(box.store.keep, bundle)
    assert (slot / "model.tflite").read_bytes() == MODEL


async def test_a_broker_that_dies_meanwhile_is_gone_on_with(broker: Mosquitto, tmp_path: Path, fleet: Fleet) -> None:
    assignment = fleet.bundle(contents={"model.tflite": MODEL})
    fleet.publish()
    await publish(broker, fleet)
    async with control_of(broker) as control:
        box = Box(tmp_path / "box", control, fleet)
        bundle = await box.bundle(await box.verified(fleet), assignment)
        model = bundle.bundle.files["model.tflite"]
        progress: list[int] = []
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
            fetching = group.create_task(box.downloads.fetch(model.sha256, model.length, progress.append))
            await until(lambda: bool(progress) and progress[-1] > 3 * DEFAULT_CHUNK_BYTES)
            broker.kill()
            broker.start()
            await publish(broker, fleet)
        assert fetching.result().read_bytes() == MODEL
        assert progress == sorted(progress), "nothing was begun anew"
