"""The broker goes away, or the operator's tool, at any moment of a deployment: it goes on when they are back."""

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fleet_scenes import box_config, new_operator, starting
from mosquitto import BINARY, Gate, Mosquitto, Subscriber
from paper_device import PaperDevice
from paper_fleet import CHUNK_BYTES, CHUNKS, Fleet, new_fleet
from publishing import in_order
from rollout_doubles import GOOD, QUIET
from signing_desk import PASSPHRASE

from appliance.config import CameraConfig
from appliance.deploy.fleet_topics import FleetTopics

TOPICS = FleetTopics("fleet", "shops")
FORGETS = ("allow_anonymous true", "max_packet_size 131072")
REMEMBERS = (*FORGETS, "persistence true", "autosave_on_changes true", "autosave_interval 1")
"""What was retained is on the disk before the broker goes on."""


@pytest.fixture(
    params=[pytest.param(FORGETS, id="forgets"), pytest.param(REMEMBERS, id="remembers", marks=pytest.mark.slow)]
)
def mosquitto(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Mosquitto]:
    if BINARY is None:
        pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
    settings = list(request.param)
    if request.param is REMEMBERS:
        settings.append(f"persistence_location {tmp_path / 'broker'}/")
    with Mosquitto(tmp_path / "broker", *settings) as broker:
        yield broker


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """One that forgets."""
    if BINARY is None:
        pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
    with Mosquitto(tmp_path / "broker", *FORGETS) as broker:
        yield broker


@pytest.fixture
def fleet(tmp_path: Path, mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    return new_fleet(tmp_path, mosquitto, monkeypatch)


@pytest.fixture
def forgetful(tmp_path: Path, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    return new_fleet(tmp_path, broker, monkeypatch)


class Killer:
    """Kills the broker when the device hears of a certain topic; ``await killed.wait()``."""

    def __init__(self, broker: Mosquitto) -> None:
        self.broker = broker
        self.at: Callable[[str], bool] = lambda topic: False
        self.killed = asyncio.Event()
        self.heard: list[str] = []

    def __call__(self, topic: str) -> None:
        self.heard.append(topic)
        if not self.killed.is_set() and self.at(topic):
            self.broker.kill()
            self.killed.set()


POINTS = {
    "metadata": lambda topic, _model: "/meta/" in topic,
    "desired-state": lambda topic, _model: "/chunk/" in topic,
    "first-chunk": lambda topic, model: topic == TOPICS.chunk(model, 0),
    "half": lambda topic, model: topic == TOPICS.chunk(model, CHUNKS // 2),
    "last-chunk": lambda topic, model: topic == TOPICS.chunk(model, CHUNKS - 1),
}


async def away(device: PaperDevice) -> None:
    await device.until(lambda: not device.publisher.stats.connection.connected)
    await device.until(lambda: not device.ears.control.connection.connected)


@pytest.mark.parametrize("point", [pytest.param(point, marks=pytest.mark.slow) for point in POINTS])
async def test_a_download_goes_on_when_the_broker_is_back(fleet: Fleet, point: str) -> None:
    await fleet.sign("1.0.0")
    await fleet.send()
    killer = Killer(fleet.broker)
    async with fleet.device(overhear=killer) as device:
        await device.until_serves("motion", "1.0.0")
        model = await fleet.sign("1.1.0")
        sending = asyncio.create_task(fleet.send())
        killer.at = lambda topic: POINTS[point](topic, model)
        await killer.killed.wait()
        await away(device)
        assert device.version("motion") == "1.0.0"
        fleet.broker.start()
        await sending  # it goes on as the device does
        await fleet.refresh()
        await device.until_serves("motion", "1.1.0")
        assert device.admitted == ["1.0.0", "1.1.0"]
        assert (await fleet.reported())["current"]["version"] == "1.1.0"
        chunks = Counter(chunk for topic in killer.heard if (chunk := TOPICS.chunk_of(topic)) and chunk[0] == model)
        assert set(chunks) == {(model, index) for index in range(CHUNKS)}
        if point == "half":
            assert all(chunks[model, index] == 1 for index in range(CHUNKS // 2)), "what was there is not sent again"


@pytest.mark.parametrize(
    "state", ["canary", *(pytest.param(state, marks=pytest.mark.slow) for state in ("fetching", "active"))]
)
@pytest.mark.slow
async def test_what_is_reported_while_the_broker_is_away_arrives(fleet: Fleet, state: str) -> None:
    await fleet.sign("1.0.0")
    await fleet.send()
    killed = asyncio.Event()
    async with fleet.device() as device:
        await device.until_serves("motion", "1.0.0")

        def on_report(said: str) -> None:
            if said == state and not killed.is_set():
                fleet.broker.kill()
                killed.set()

        device.on_report = on_report
        device.serving.verdict = QUIET if state == "canary" else GOOD
        await fleet.sign("1.1.0")
        sending = asyncio.create_task(fleet.send())
        await killed.wait()
        await away(device)
        device.serving.verdict = GOOD
        if state != "fetching":  # everything is here: it needs no broker
            await device.until_serves("motion", "1.1.0")
        fleet.broker.start()
        await sending
        await fleet.refresh()
        await device.until_serves("motion", "1.1.0")
        await device.until(lambda: device.publisher.stats.connection.connected)
        await device.until(lambda: device.publisher.settled(device.publisher.topics.deployed("motion")))
        report = await fleet.reported()
        assert (report["state"], report["current"]["version"]) == ("active", "1.1.0")
        assert report["previous"]["version"] == "1.0.0"


@pytest.mark.slow
async def test_a_device_that_was_off_during_the_outage_has_what_it_had(fleet: Fleet) -> None:
    await fleet.sign("1.0.0")
    await fleet.send()
    model = await fleet.sign("1.1.0")
    killer = Killer(fleet.broker)
    async with fleet.device(overhear=killer) as device:
        await device.until_serves("motion", "1.0.0")
        killer.at = lambda topic: topic == TOPICS.chunk(model, 1)  # what is beyond the window cannot come
        await fleet.send()
        await killer.killed.wait()
        await away(device)
    begun = [file.stat().st_size for file in (fleet.path / "box" / "deploy" / "incoming").glob(f"{model}.*")]
    async with fleet.device() as device:  # the power is back before the broker
        assert device.version("motion") == "1.0.0"
        fleet.broker.start()
        await fleet.refresh()
        await device.until_serves("motion", "1.1.0")
        first = sum(begun) // CHUNK_BYTES
        asked = [TOPICS.chunk_of(topic) for topic in device.ears.asked]
        assert min(index for digest, index in filter(None, asked) if digest == model) == first
        assert (await fleet.reported())["current"]["version"] == "1.1.0"


@pytest.mark.slow
async def test_results_of_others_lose_nothing_and_keep_their_order(
    tmp_path: Path, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.fleet.keys.SCRYPT_LOG_N", 4)
    async with Gate(broker.port) as gate:
        operator = new_operator(tmp_path, broker.url)
        camera = CameraConfig(fps=30, lossless=True)
        config = box_config("gate", gate.url, operator, "motion", camera=camera)
        async with starting(tmp_path, broker)(config) as box:
            await operator("deploy", operator.bundle("acme", "1.0.0"), "--to", "all")
            await box.until(lambda: len(box.of("motion")) > 20 and len(box.of("acme")) > 20)
            await operator("deploy", operator.bundle("acme", "1.1.0"), "--to", "all", "--no-send")
            broker.kill()
            await gate.shut()
            await box.until(lambda: box.appliance.publisher.stats.backlog > 60)
            broker.start()
            await box.subscriber.subscribed()
            await gate.open()
            await operator("refresh")
            await box.until(lambda: box.says("acme") == "1.1.0")
            await box.until(lambda: len(box.of("acme")) > 150)
            assert box.appliance.publisher.stats.spooled > 0
        for name in ("motion", "acme"):
            numbers = [result["seq"] for result in box.of(name)]
            assert in_order(numbers)
            assert sorted(set(numbers)) == list(range(min(numbers), max(numbers) + 1)), name
        assert box.summary.lost == 0


# --- the operator's tool ---------------------------------------------------------------------------------------


async def killed_tool(fleet: Fleet, gate: Gate, now: Callable[[], bool]) -> int:
    """``appliance fleet refresh``, killed as soon as ``now``; its exit code."""
    settings = fleet.desk.directory / "fleet.toml"
    text = settings.read_text()
    settings.write_text(text.replace(fleet.broker.url, gate.url))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "appliance", "fleet", "refresh"),
        env={**os.environ, "APPLIANCE_FLEET": str(fleet.desk.directory), "APPLIANCE_FLEET_PASSPHRASE": PASSPHRASE},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(30):
        while not now() and process.returncode is None:
            await asyncio.sleep(0)
    if process.returncode is None:
        process.send_signal(signal.SIGKILL)
    code = await process.wait()
    settings.write_text(text)
    return code


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
async def test_a_killed_tool_leaves_devices_what_they_had_and_a_refresh_mends_it(
    forgetful: Fleet, share: float
) -> None:
    fleet = forgetful
    await fleet.sign("1.0.0")
    await fleet.send()
    async with fleet.device() as device, Gate(fleet.broker.port, delay=0.002) as gate:
        await device.until_serves("motion", "1.0.0")
        model = await fleet.sign("1.1.0")
        bound = share * CHUNKS * CHUNK_BYTES
        assert await killed_tool(fleet, gate, lambda: gate.to_broker > bound) == -signal.SIGKILL
        async with fleet.device("late") as late:  # comes to what is half there
            await late.until_serves("motion", "1.0.0")
        assert device.version("motion") == "1.0.0"
        assert [TOPICS.chunk_of(topic) for topic in device.ears.asked if model in topic] == []
        await fleet.refresh()
        await device.until_serves("motion", "1.1.0")
        async with fleet.device("late") as late:
            await late.until_serves("motion", "1.1.0")


@pytest.mark.slow
async def test_a_tool_killed_between_metadata_and_timestamp_leaves_devices_what_they_had(forgetful: Fleet) -> None:
    fleet = forgetful
    await fleet.sign("1.0.0")
    await fleet.send()
    async with (
        fleet.device() as device,
        Subscriber(fleet.broker.port) as watcher,
        Gate(fleet.broker.port, delay=0.02) as gate,
    ):
        await device.until_serves("motion", "1.0.0")
        await fleet.sign("1.1.0")
        seen = len(watcher.received)
        await killed_tool(fleet, gate, lambda: any("/meta/" in each.topic for each in watcher.received[seen:]))
        await fleet.refresh()
        await device.until_serves("motion", "1.1.0")
        assert device.admitted == ["1.0.0", "1.1.0"]
