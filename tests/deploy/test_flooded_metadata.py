"""A broker that floods a box with metadata, and then behaves."""

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from fleet_double import START, Fleet, messages
from retained_double import Message
from rollout_doubles import PaperServing, spec_of, until

from appliance import deployer as module
from appliance.config import FleetConfig
from appliance.deploy import asking
from appliance.deploy.download import Downloads
from appliance.deploy.fleet_topics import FleetTopics
from appliance.deploy.metadata import MAX_METADATA_FILES
from appliance.deploy.report import DeviceReport
from appliance.deploy.store import Store
from appliance.deploy.trust import Trust
from appliance.deployer import Deployer

TOPICS = FleetTopics("fleet", "farm")


class Broker:
    """Sends what it retains once for each subscription."""

    def __init__(self, retained: dict[str, bytes]) -> None:
        self.retained = retained
        self.listening: dict[str, Callable[[Message], None]] = {}

    def listen(self, filters: Iterable[str], on_message: Callable[[Message], None]) -> None:
        for each in filters:
            self.listening[each] = on_message
            asyncio.get_running_loop().call_soon(self._send, each, on_message)

    def ignore(self, filters: Iterable[str]) -> None:
        for each in filters:
            self.listening.pop(each, None)

    def _send(self, filter_: str, on_message: Callable[[Message], None]) -> None:
        for topic, payload in list(self.retained.items()):
            if topic == filter_ or (filter_.endswith("+") and topic.startswith(filter_[:-1])):
                on_message(Message(topic, payload))


async def _admitted(_spec: object) -> None:
    pass


async def test_after_a_flood_the_box_asks_again_and_converges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFRESH_SECONDS", 0.01)
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.005)
    monkeypatch.setattr(asking, "FIRST_ASK", 0.01)
    monkeypatch.setattr(asking, "LAST_ASK", 0.01)
    fleet = Fleet()
    fleet.deploy("box", {})
    fleet.publish()
    good = messages(fleet, TOPICS)
    flood = {TOPICS.metadata(f"{number}.flood.json"): b"x" for number in range(1, MAX_METADATA_FILES + 1)}
    broker = Broker({**good, **flood})
    store = Store(tmp_path / "deploy", 1 << 20)
    said: list[DeviceReport] = []
    deployer = Deployer(
        FleetConfig(name="farm"),
        "box",
        topics=TOPICS,
        ears=broker,
        trust=Trust(tmp_path / "trust", fleet.first_root, wall=START.timestamp),
        store=store,
        downloads=Downloads(TOPICS, broker, store),
        serving=PaperServing(),
        load=spec_of,
        admit=_admitted,
        report=lambda _, report: said.append(report) if isinstance(report, DeviceReport) else None,
        wall=START.timestamp,
    )
    async with deployer:
        await deployer.start_active()
        await until(lambda: deployer._cache.emptied > 2)
        assert said[-1].state == "waiting"
        broker.retained = good
        await until(lambda: said[-1].state == "current")
    assert said[-1].metadata["timestamp"] == 2
