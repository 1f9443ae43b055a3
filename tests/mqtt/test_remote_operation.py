"""Requests to a device by a real broker and mosquitto_rr, as docs/mqtt.md shows them."""

import asyncio
import itertools
import json
import logging
import re
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from mosquitto import PATIENCE, Mosquitto, Subscriber
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from test_mqtt_doc import PAGE, blocks

from appliance.backoff import Backoff
from appliance.config import MqttConfig
from appliance.control import Control
from appliance.device.log_levels import LogLevels
from appliance.errors import ConfigError
from appliance.log_feed import LogFeed
from appliance.mqtt.requests import ARGUMENTS, BURST
from appliance.mqtt.topics import Topics
from appliance.remote import MAX_UNDER_WAY, Remote
from appliance.snapshot import Snapshot

TOPICS = Topics("appliance", "box-7")
JPEG = b"\xff\xd8" + bytes(range(256)) * 300


class Changes:
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def reload(self) -> list[str]:
        self.calls.append("reload")
        await self.gate.wait()
        return ["log.level", "handlers.parts"]

    async def restart(self, name: str) -> None:
        self.calls.append(f"restart {name}")
        await self.gate.wait()
        if name != "parts":
            raise ConfigError(f"there is no handler {name!r}; there are: parts")


class Pictures:
    def __init__(self) -> None:
        self.rooms: list[int] = []

    async def take(self, camera: str, max_bytes: int) -> Snapshot:
        assert camera == "camera"
        self.rooms.append(max_bytes)
        return Snapshot(JPEG, "image/jpeg")


class Box:
    def __init__(self, config: MqttConfig) -> None:
        retry, retry_refused = (Backoff(0.02, limit=0.02) for _ in range(2))
        self.control = Control(config, "box-7", retry=retry, retry_refused=retry_refused)
        self.changes = Changes()
        self.pictures = Pictures()
        self.levels = LogLevels("info")
        self.remote = Remote(
            self.control, TOPICS, tuple(ARGUMENTS), changes=self.changes, pictures=self.pictures, levels=self.levels
        )


@asynccontextmanager
async def running(config: MqttConfig) -> AsyncIterator[Box]:
    box = Box(config)
    async with box.control, box.remote, asyncio.timeout(2 * PATIENCE):
        while box.control._client is None or box.control._client._link is None or box.control._client._link._asked:
            await asyncio.sleep(0.01)
        yield box


@pytest.fixture
async def box(broker: Mosquitto) -> AsyncIterator[Box]:
    async with running(MqttConfig(url=broker.url)) as box:
        yield box


NUMBERS = itertools.count()


async def ask(broker: Mosquitto, command: str, payload: Any, *options: str) -> Any:
    topic = TOPICS.command(command)
    place = f"{TOPICS.root}/response/me/{next(NUMBERS)}"
    given = ["-e", place, "-m", json.dumps(payload), "-W", "10", *options]
    output = await run("mosquitto_rr", "-h", "127.0.0.1", "-p", str(broker.port), "-V", "5", "-t", topic, *given)
    return json.loads(output)


async def run(*command: str) -> bytes:
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(PATIENCE):
        output, _ = await process.communicate()
    assert process.returncode == 0
    return output


async def tell(broker: Mosquitto, command: str, payload: bytes, *, retain: bool = False, **properties: Any) -> None:
    """Ask without waiting for an answer."""
    given = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    for name, value in properties.items():
        setattr(given, name, value)
    async with aiomqtt.Client("127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5) as client:
        await client.publish(TOPICS.command(command), payload, 1, retain, given)


EXAMPLES = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("mosquitto_rr")]


@pytest.mark.parametrize("example", EXAMPLES)
async def test_the_examples_of_the_page_work(box: Box, broker: Mosquitto, example: str) -> None:
    command = shlex.split(example.replace("-h BROKER", f"-h 127.0.0.1 -p {broker.port} -W 10").partition(" > ")[0])
    logging.getLogger("appliance.zipper")
    output = await run(*command)
    if "snapshot" in example:
        assert output == JPEG
        assert box.pictures.rooms[0] > 2 << 20
    else:
        assert json.loads(output)["ok"] is True


def test_the_page_has_an_example_of_each_request() -> None:
    shown = {found for example in EXAMPLES for found in re.findall(r"/command/(\w+)", example)}
    assert shown == set(ARGUMENTS)
    assert set(ARGUMENTS) <= set(re.findall(r"^\| `(\w+)` \| (?:`|none)", PAGE, re.MULTILINE))


async def test_answers_say_what_was_done_or_what_is_wrong(box: Box, broker: Mosquitto) -> None:
    assert await ask(broker, "reload", {}) == {"ok": True, "changed": ["log.level", "handlers.parts"]}
    assert await ask(broker, "restart", {"handler": "parts"}) == {"ok": True}
    assert await ask(broker, "restart", {"handler": "x"}) == {
        "ok": False,
        "error": "there is no handler 'x'; there are: parts",
    }
    assert "not the arguments of restart" in (await ask(broker, "restart", {"handler": 1}))["error"]
    assert box.changes.calls == ["reload", "restart parts", "restart x"]


async def test_what_the_configuration_does_not_list_is_not_done(box: Box, broker: Mosquitto) -> None:
    box.remote.allow(["log"])
    assert "mqtt.commands" in (await ask(broker, "reload", {}))["error"]
    assert "mqtt.commands" in (await ask(broker, "shutdown", {}))["error"]
    assert box.changes.calls == []


async def test_where_nothing_is_allowed_nothing_is_heard(box: Box, broker: Mosquitto) -> None:
    box.remote.allow([])
    assert box.control._listeners == {}
    await tell(broker, "reload", b"{}", ResponseTopic=f"{TOPICS.root}/response/x")
    box.remote.allow(["restart"])
    assert (await ask(broker, "restart", {"handler": "parts"}))["ok"]
    assert box.changes.calls == ["restart parts"]


async def test_a_retained_request_is_not_carried_out_now_nor_at_the_next_connection(
    box: Box, broker: Mosquitto
) -> None:
    async with Subscriber(broker.port) as subscriber:
        await tell(broker, "reload", b"{}", retain=True, ResponseTopic=f"{TOPICS.root}/response/x")
        await subscriber.until(lambda: any("/response/" in message.topic for message in subscriber.received))
        async with running(MqttConfig(url=broker.url)) as again:
            await subscriber.until(lambda: sum("/response/x" in m.topic for m in subscriber.received) == 2)
            assert box.changes.calls == again.changes.calls == []


async def test_nobody_makes_the_device_speak_elsewhere(box: Box, broker: Mosquitto) -> None:
    async with Subscriber(broker.port) as subscriber:
        for topic in ("appliance/box-7/status", "appliance/box-8/response/me", "homeassistant/status"):
            await tell(broker, "reload", b"{}", ResponseTopic=topic)
        await tell(broker, "reload", b"{}")
        assert (await ask(broker, "restart", {"handler": "parts"}))["ok"]
        await subscriber.until(lambda: any("/response/" in message.topic for message in subscriber.received))
        said = {message.topic for message in subscriber.received if "/command/" not in message.topic}
        assert len(said) == 1
        assert said.pop().startswith(f"{TOPICS.root}/response/me/")
        assert box.remote.ignored == 4
        assert box.changes.calls == ["restart parts"]


async def test_copies_are_answered_once(box: Box, broker: Mosquitto) -> None:
    properties = {"ResponseTopic": f"{TOPICS.root}/response/x", "CorrelationData": b"same"}
    for _ in range(3):
        await tell(broker, "restart", b'{"handler":"parts"}', **properties)
    await ask(broker, "reload", {})
    assert box.changes.calls == ["restart parts", "reload"]


async def test_a_request_that_expires_before_its_turn_is_not_carried_out(broker: Mosquitto) -> None:
    now = 0.0
    box = Box(MqttConfig(url=broker.url))
    box.remote = Remote(
        box.control,
        TOPICS,
        tuple(ARGUMENTS),
        changes=box.changes,
        pictures=box.pictures,
        levels=box.levels,
        clock=lambda: now,
    )
    async with box.control, box.remote, asyncio.timeout(PATIENCE):
        while not box.control.connection.connected:
            await asyncio.sleep(0.01)
        box.changes.gate.clear()
        first = asyncio.create_task(ask(broker, "reload", {}))
        while box.changes.calls != ["reload"]:
            await asyncio.sleep(0.01)
        second = asyncio.create_task(
            ask(broker, "restart", {"handler": "parts"}, "-D", "publish", "message-expiry-interval", "20")
        )
        while len(box.remote._open) < 2:
            await asyncio.sleep(0.01)
        now = 30.0
        box.changes.gate.set()
        assert (await first)["ok"] is True
        assert "expired" in (await second)["error"]
    assert box.changes.calls == ["reload"]


async def test_only_some_are_under_way_at_a_time(box: Box, broker: Mosquitto) -> None:
    box.changes.gate.clear()
    waiting = [asyncio.create_task(ask(broker, "reload", {})) for _ in range(MAX_UNDER_WAY)]
    while len(box.remote._open) < MAX_UNDER_WAY:
        await asyncio.sleep(0.01)
    async with Subscriber(broker.port) as subscriber:
        await tell(broker, "reload", b"", ResponseTopic=f"{TOPICS.root}/response/late")
        await subscriber.until(lambda: bool(subscriber.states("/response/late")))
        assert "under way" in json.loads(subscriber.states("/response/late")[0])["error"]
    box.changes.gate.set()
    assert all([(await each)["ok"] for each in waiting])


async def test_a_flood_is_answered_for_a_while_and_told_once(box: Box, broker: Mosquitto) -> None:
    async with Subscriber(broker.port) as subscriber:
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ResponseTopic = f"{TOPICS.root}/response/x"
        async with aiomqtt.Client("127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5) as client:
            for _ in range(10 * BURST):
                await client.publish(TOPICS.command("shutdown"), b"", 0, properties=properties)
            await client.publish("end", b"", 1)
        await subscriber.until(lambda: bool(subscriber.states("end")))
        while box.remote.ignored < 8 * BURST:
            await asyncio.sleep(0.01)
        answers = subscriber.states("/response/x")
        assert len(answers) < 3 * BURST
        assert box.control.connection.connected


async def test_a_level_is_set_for_a_while(box: Box, broker: Mosquitto) -> None:
    logger = logging.getLogger("appliance.zipper.somewhere")
    answer = await ask(broker, "log", {"unit": "zipper", "level": "error", "seconds": 0.05})
    assert answer == {"ok": True, "unit": "zipper", "level": "error", "seconds": 0.05}
    while logging.getLogger("appliance.zipper").level != logging.NOTSET:
        await asyncio.sleep(0.01)
    await ask(broker, "log", {"unit": "zipper", "level": "error", "seconds": 600})
    assert await ask(broker, "log", {"unit": "zipper", "level": "debug"}) == {
        "ok": True,
        "unit": "zipper",
        "level": "debug",
    }
    assert logger.getEffectiveLevel() == logging.DEBUG
    assert box.remote._timers == {}
    box.levels.restore("zipper")
    assert "handler.none" in (await ask(broker, "log", {"unit": "handler.none", "level": "debug"}))["error"]


async def test_a_defect_ends_the_body(broker: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> None:
    box = Box(MqttConfig(url=broker.url))

    async def broken(name: str) -> None:
        raise ZeroDivisionError(name)

    monkeypatch.setattr(box.changes, "restart", broken)

    async def until_broken() -> None:
        async with box.control, box.remote:
            await asyncio.Event().wait()

    body = asyncio.create_task(until_broken())
    while not box.control.connection.connected:
        await asyncio.sleep(0.01)
    await tell(broker, "restart", b'{"handler":"parts"}', ResponseTopic=f"{TOPICS.root}/response/x")
    with pytest.raises(ExceptionGroup) as raised:
        async with asyncio.timeout(PATIENCE):
            await body
    assert raised.group_contains(ZeroDivisionError)


async def test_the_end_cancels_what_is_under_way(broker: Mosquitto) -> None:
    async with running(MqttConfig(url=broker.url)) as box:
        box.changes.gate.clear()
        properties = {"ResponseTopic": f"{TOPICS.root}/response/x"}
        await tell(broker, "restart", b'{"handler":"parts"}', **properties)
        while not box.changes.calls:
            await asyncio.sleep(0.01)
    assert box.remote._open == set()


async def test_the_access_list_of_the_page_keeps_everybody_in_their_place(
    tmp_path: Path, mosquitto_binary: str
) -> None:
    (tmp_path / "acl").write_text("\n".join(blocks("acl")))
    passwords = tmp_path / "passwords"
    passwords.touch()
    for user in ("box-7", "operator", "gatekeeper", "dashboard"):
        await run("mosquitto_passwd", "-b", str(passwords), user, "secret")
    settings = ("allow_anonymous false", f"password_file {passwords}", f"acl_file {tmp_path / 'acl'}")

    async def asks(user: str, command: str, payload: str, place: str) -> bytes | None:
        given = ["mosquitto_rr", "-h", "127.0.0.1", "-p", str(broker.port), "-V", "5", "-u", user, "-P", "secret"]
        place = f"{TOPICS.root}/response/{place}"
        more = ["-t", TOPICS.command(command), "-e", place, "-m", payload, "-W", "1", "-N"]
        process = await asyncio.create_subprocess_exec(
            *given, *more, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        output, _ = await process.communicate()
        return output if process.returncode == 0 and output else None

    with Mosquitto(tmp_path / "broker", *settings) as broker:
        async with running(MqttConfig(url=broker.url, username="box-7", password="secret")) as box:
            assert await asks("operator", "reload", "{}", "operator/1")
            assert await asks("gatekeeper", "snapshot", '{"camera":"camera"}', "gatekeeper/1") == JPEG
            assert await asks("gatekeeper", "reload", "{}", "gatekeeper/1") is None
            assert await asks("dashboard", "reload", "{}", "dashboard") is None
            assert await asks("gatekeeper", "snapshot", '{"camera":"camera"}', "operator/1") is None
            assert box.changes.calls == ["reload"]


async def test_the_log_is_published(broker: Mosquitto, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with Subscriber(broker.port) as subscriber, running(MqttConfig(url=broker.url)) as box:
        with LogFeed(box.control, TOPICS, "warning"):
            logging.getLogger("handler.parts").warning("event=handler_fault kind=%s", "trap")
            await subscriber.until(lambda: bool(subscriber.states("/log")))
        (line,) = [json.loads(each) for each in subscriber.states("/log")]
        assert {**line, "at": ""} == {
            "at": "",
            "level": "warning",
            "unit": "handler.parts",
            "text": "event=handler_fault kind=trap",
        }
