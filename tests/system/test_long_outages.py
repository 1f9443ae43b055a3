"""Outages of minutes and of a day, by a simulated clock: nothing gives up, and all goes on soon after."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from fleet_double import START, Fleet, messages
from memory_broker import MemoryBroker, Message
from rollout_doubles import GOOD, PaperServing, spec_of
from simulated_time import simulated

from appliance.config import FleetConfig
from appliance.deploy.download import Downloads
from appliance.deploy.fleet_topics import DEFAULT_CHUNK_BYTES, FleetTopics
from appliance.deploy.report import HandlerReport
from appliance.deploy.resent import AGAIN_SECONDS
from appliance.deploy.store import Store
from appliance.deploy.trust import Trust
from appliance.deployer import Deployer

TOPICS = FleetTopics("fleet", "f")
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
SOON = 5.0
"""Seconds from the broker's return to the new version in service, where its canary passes at once."""


class ShakyBroker(MemoryBroker):
    """Goes away when ``cut`` says so of a topic that is delivered."""

    def __init__(self) -> None:
        super().__init__()
        self.there = True
        self.cut: Callable[[str], bool] = lambda topic: False

    def back(self) -> None:
        """As devices are connected again: they subscribe to all that they did, and hear what is retained."""
        self.there = True
        for filter_, on_message in list(self._listening.items()):
            self.listen([filter_], on_message)

    def _tell(self, filter_: str, topic: str, payload: bytes) -> None:
        if self.there:
            super()._tell(filter_, topic, payload)

    def _deliver(self, filter_: str, message: Message) -> None:
        if self.there and self.cut(message.topic):
            self.there = False
            self.cut = lambda topic: False
        if self.there:
            super()._deliver(filter_, message)


class Box:
    """A device whose time is the loop's."""

    def __init__(self, path: Path) -> None:
        self.fleet = Fleet()
        self.broker = ShakyBroker()
        self.path = path
        self.serving = PaperServing()
        self.serving.samples = dict.fromkeys(("1.0.0", "2.0.0", "3.0.0"), GOOD)
        self.reports: list[HandlerReport] = []

    def sign(self, version: str) -> str:
        """Deploy a version with a model of its own; not published. A chunk in the middle of the model."""
        model = os.urandom(40 * DEFAULT_CHUNK_BYTES)
        assignment = self.fleet.bundle(version=version, contents={"model.tflite": model})
        self.fleet.deploy("box", {"detector": assignment})
        self.fleet.publish()
        chunks = messages(self.fleet, TOPICS)
        return next(
            topic
            for topic, piece in chunks.items()
            if piece == model[20 * DEFAULT_CHUNK_BYTES :][: len(piece)] and topic.endswith("/20")
        )

    def publish(self) -> None:
        self.broker.publish(messages(self.fleet, TOPICS))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Deployer]:
        clock = asyncio.get_running_loop().time

        def wall() -> float:
            return (START + timedelta(hours=1)).timestamp() + clock()

        store = Store(self.path / "deploy", 64 << 20)
        deployer = Deployer(
            FleetConfig(name="f", canary_seconds=HOUR),
            "box",
            topics=TOPICS,
            ears=self.broker,
            trust=Trust(self.path / "trust", self.fleet.first_root, wall=wall),
            store=store,
            downloads=Downloads(TOPICS, self.broker, store),
            serving=self.serving,
            load=spec_of,
            admit=self._admit,
            report=lambda _, report: self.reports.append(report) if isinstance(report, HandlerReport) else None,
            wall=wall,
            clock=clock,
        )
        async with deployer:
            await deployer.start_active()
            yield deployer

    async def _admit(self, _spec: object) -> None: ...

    @property
    def version(self) -> str:
        return self.serving.live["detector"].version if self.serving.live else ""

    async def serves(self, version: str) -> float:
        """Seconds until it does."""
        clock = asyncio.get_running_loop().time
        started = clock()
        async with asyncio.timeout(DAY):
            while self.version != version:
                await asyncio.sleep(0.1)
        return clock() - started


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    monkeypatch.setattr("appliance.rollout.rollout.POLL_SECONDS", 1.0)  # a day has many quarters of a second
    return Box(tmp_path)


@pytest.mark.parametrize(
    "outage",
    [10 * MINUTE, *(pytest.param(long, marks=pytest.mark.slow) for long in (11 * MINUTE, 25 * MINUTE, 4 * HOUR, DAY))],
)
def test_a_deployment_goes_on_as_soon_as_the_broker_is_back(box: Box, outage: float) -> None:
    async def scene() -> None:
        async with box.running():
            box.sign("1.0.0")
            box.publish()
            await box.serves("1.0.0")
            middle = box.sign("2.0.0")
            box.broker.cut = lambda topic: topic == middle
            box.publish()
            await asyncio.sleep(outage)
            assert box.version == "1.0.0"
            assert not box.broker.there
            assert "has not come" in box.reports[-1].reason or box.reports[-1].state == "fetching"
            heard = len(box.broker.heard)
            box.broker.back()
            assert await box.serves("2.0.0") < SOON
            begun = {TOPICS.chunk_of(topic) for topic in box.broker.heard[heard:]}
            assert TOPICS.chunk_of(middle.replace("/20", "/0")) not in begun, "what was there is not sent again"

    simulated(scene())


@pytest.mark.parametrize("outage", [10 * MINUTE, pytest.param(25 * MINUTE, marks=pytest.mark.slow)])
def test_an_order_goes_on_as_soon_as_the_broker_is_back(box: Box, outage: float) -> None:
    """It was away before the device knew what it should run."""

    async def scene() -> None:
        async with box.running():
            box.sign("1.0.0")
            box.publish()
            await box.serves("1.0.0")
            box.sign("2.0.0")
            box.broker.cut = lambda topic: "/chunk/" in topic
            box.publish()
            await asyncio.sleep(outage)
            assert not box.broker.there
            box.broker.back()
            assert await box.serves("2.0.0") < SOON

    simulated(scene())


@pytest.mark.parametrize(
    "later", [0.0, *(pytest.param(late, marks=pytest.mark.slow) for late in (7 * MINUTE, 3 * HOUR))]
)
def test_a_broker_that_forgot_is_mended_by_a_refresh_however_late(box: Box, later: float) -> None:
    async def scene() -> None:
        async with box.running():
            box.sign("1.0.0")
            box.publish()
            await box.serves("1.0.0")
            middle = box.sign("2.0.0")
            box.broker.cut = lambda topic: topic == middle
            box.publish()
            await asyncio.sleep(10 * MINUTE)
            box.broker.retained.clear()
            box.broker.back()
            await asyncio.sleep(later)
            assert box.version == "1.0.0"
            box.fleet.publish_timestamp(raise_version=True)  # the operator's refresh
            box.publish()
            assert await box.serves("2.0.0") < SOON

    simulated(scene())


@pytest.mark.parametrize("again", [pytest.param(1.0, marks=pytest.mark.slow), 10.0])
def test_the_same_timestamp_again_and_again_wears_no_disk(box: Box, again: float) -> None:
    async def scene() -> None:
        async with box.running():
            box.sign("1.0.0")
            box.publish()
            await box.serves("1.0.0")
            middle = box.sign("2.0.0")
            first = middle.replace("/20", "/0")
            messages_now = messages(box.fleet, TOPICS)
            box.broker.publish(messages_now | {first: b"no chunk"})
            await asyncio.sleep(SOON)
            before = len(box.reports)
            for _ in range(int(10 * MINUTE / again)):
                box.broker.back()
                await asyncio.sleep(again)
            states = [report.state for report in box.reports[before:]]
            tries = sum(pair == ("waiting", "fetching") for pair in itertools.pairwise(states))
            assert 10 < tries <= 10 * MINUTE / AGAIN_SECONDS + 10

    simulated(scene())
