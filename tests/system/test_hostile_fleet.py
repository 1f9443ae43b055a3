"""A real box and a real broker, and somebody who may write on it: what runs loses no frame, and the fleet recovers."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiomqtt
import pytest
from fleet_scenes import CANARY_FRAMES, Operator, box_config, new_operator, starting
from mosquitto import Mosquitto, end

from appliance import deployer
from appliance.config import CameraConfig
from appliance.deploy import asking, download
from appliance.deploy.fleet_topics import FleetTopics
from appliance.deploy.partial_file import file_digest
from appliance.rollout import rollout

TOPICS = FleetTopics("fleet", "shops")


class Attacker:
    """Overwrites whatever is retained of the fleet as soon as it is, and adds to it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._dice = random.Random(5)
        self._mine: set[tuple[str, bytes]] = set()
        self.overwritten = 0

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._work())
        try:
            yield
        finally:
            await end(task)
            if not task.cancelled():
                await task  # why it ended

    async def _work(self) -> None:
        async with aiomqtt.Client("127.0.0.1", self._port, protocol=aiomqtt.ProtocolVersion.V5) as client:
            for number in range(600):
                await self._put(client, TOPICS.metadata(f"{number + 1}.junk.json"), b"{}")
            for number in range(2, 9):
                await self._put(client, TOPICS.metadata(f"{number}.root.json"), b"forged")
            await client.subscribe(f"{TOPICS.root}/#", qos=1)
            async for message in client.messages:
                topic, payload = str(message.topic), bytes(message.payload)
                if payload and (topic, payload) not in self._mine and topic != TOPICS.marker:
                    at = self._dice.randrange(len(payload))
                    await self._put(client, topic, payload[:at] + bytes([payload[at] ^ 1]) + payload[at + 1 :])
                    self.overwritten += 1

    async def _put(self, client: aiomqtt.Client, topic: str, payload: bytes) -> None:
        self._mine.add((topic, payload))
        await client.publish(topic, payload, qos=1, retain=True)


@pytest.mark.slow
async def test_an_attacker_on_the_broker_costs_no_frame_and_is_swept_away(
    tmp_path: Path, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.fleet.keys.SCRYPT_LOG_N", 4)
    for where, name in ((asking, "LAST_ASK"), (deployer, "LAST_RETRY"), (rollout, "LAST_RETRY")):
        monkeypatch.setattr(where, name, 2.0)
    monkeypatch.setattr(asking, "FIRST_ASK", 1.0)
    monkeypatch.setattr(download, "STALL_SECONDS", 2.0)
    operator: Operator = new_operator(tmp_path, broker.url)
    attacker = Attacker(broker.port)
    boxes = starting(tmp_path, broker)
    camera = CameraConfig(fps=25, lossless=True)
    everybody = ("--to", "all")
    async with boxes(box_config("gate", broker.url, operator, "motion", camera=camera)) as gate:
        neighbour = gate.appliance.processes()["worker/motion"]
        await operator("deploy", operator.bundle("acme", "1.0.0"), *everybody)
        await gate.until_runs("acme", "1.0.0")
        async with attacker.at_work():
            await gate.until(lambda: gate.report().get("state") != "current" or attacker.overwritten)
            for version in ("1.1.0", "1.2.0"):
                bundle = operator.bundle("acme", version)
                with contextlib.suppress(AssertionError):  # the tool may find out that it is not alone
                    await operator("deploy", bundle, *everybody, "--no-wait")
                before = len(gate.of("acme"))
                await gate.until(lambda before=before: len(gate.of("acme")) > before + CANARY_FRAMES)
            assert attacker.overwritten > 4
            # most of the time it is 1.0.0: what is signed comes through only where the box is faster than the attacker
            assert gate.report("acme")["current"]["version"] in {"1.0.0", "1.1.0", "1.2.0"}
        await operator("refresh", "--sweep")
        await gate.until_runs("acme", "1.2.0")
        await gate.until(lambda: gate.says("acme") == "1.2.0")
        assert gate.report()["state"] == "current"
        assert gate.appliance.processes()["worker/motion"] == neighbour
        assert gate.state("handler/motion")["faults"] == {}
        assert gate.appliance.publisher.stats.connection.reconnects == 0
    numbers = [result["seq"] for result in gate.of("acme")]
    assert sorted(numbers) == list(range(min(numbers), max(numbers) + 1))
    assert gate.summary.lost == 0
    for file in (tmp_path / "gate" / "deploy" / "objects").iterdir():
        assert file_digest(file) == file.name
