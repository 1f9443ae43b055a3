"""What docs/fleet.md shows of the broker is true: with exactly its commands, configuration and access list."""

import asyncio
import re
import ssl
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import aiomqtt
import msgspec
import pytest
from mosquitto import PATIENCE, Mosquitto
from signed_fleet import SomeFleet, Watcher

from appliance.config import Config
from appliance.deploy.report import REPORT_SECONDS
from appliance.fleet.operate import PATIENCE_SECONDS, synchronise
from appliance.fleet.settings import FleetSettings
from appliance.fleet.watching import SILENT_SECONDS
from appliance.mqtt.endpoint import endpoint_of, tls_context
from appliance.mqtt.link import Link, Message
from appliance.mqtt.private_broker import MAX_PACKET_BYTES
from appliance.mqtt.reasons import explain

PAGE = (Path(__file__).parents[2] / "docs" / "fleet.md").read_text("utf-8")
SECTION = PAGE.partition("\n## The broker\n")[2].partition("\n## ")[0]
PASSWORD = "secret"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def etc(tmp_path_factory: pytest.TempPathFactory, mosquitto_binary: str) -> Path:
    """``/etc/mosquitto`` as the page makes it, with a certificate for this machine."""
    directory = tmp_path_factory.mktemp("etc")
    (directory / "certs").mkdir()
    (commands,) = blocks("sh")
    commands = commands.replace("/etc/mosquitto", str(directory)).replace("DNS:broker.example", "IP:127.0.0.1")
    subprocess.run(["sh", "-ec", commands], check=True, capture_output=True, timeout=60)
    for user in ("box-7", "box-8", "operator", "acme", "dashboard"):
        command = ["mosquitto_passwd", "-b", str(directory / "passwords"), user, PASSWORD]
        subprocess.run(command, check=True, timeout=60)
    (acl,) = blocks("acl")
    (directory / "acl").write_text(acl)
    return directory


@pytest.fixture
def shared(etc: Path, tmp_path: Path) -> Iterator[Mosquitto]:
    """The page's broker, on another port."""
    (conf,) = blocks("conf")
    listener, *lines = conf.splitlines()
    assert listener == "listener 8883"
    here = {"/etc/mosquitto": str(etc), "/var/lib/mosquitto": str(tmp_path)}
    for path, ours in here.items():
        lines = [line.replace(path, ours) for line in lines]
    with Mosquitto(tmp_path / "broker", *lines) as broker:
        yield broker


def context(etc: Path) -> ssl.SSLContext:
    """As strict as newer Pythons are."""
    made = ssl.create_default_context(cafile=str(etc / "certs" / "ca.pem"))
    made.verify_flags |= ssl.VERIFY_X509_STRICT
    return made


def client(broker: Mosquitto, etc: Path, user: str) -> aiomqtt.Client:
    return aiomqtt.Client(
        "127.0.0.1", broker.port, username=user, password=PASSWORD, tls_context=context(etc),
        protocol=aiomqtt.ProtocolVersion.V5,
    )  # fmt: skip


async def may_write(broker: Mosquitto, etc: Path, user: str, topic: str) -> bool:
    """Whether the broker takes a message, or acknowledges it as refused."""
    config = msgspec.structs.replace(
        Config().mqtt,
        url=f"mqtts://127.0.0.1:{broker.port}",
        username=user,
        password=PASSWORD,
        ca_file=str(etc / "certs" / "ca.pem"),
    )
    endpoint = endpoint_of(config)
    taken = asyncio.Event()
    link = Link(endpoint, user, None, tls_context(endpoint), lambda _: taken.set())
    async with asyncio.timeout(PATIENCE), link:
        link.send(Message(topic, b"x", retain=True), 0)
        waiting, ended = asyncio.create_task(taken.wait()), asyncio.create_task(link.ended())
        done, pending = await asyncio.wait([waiting, ended], return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
            await asyncio.wait([task])
        if waiting in done:
            return True
        error = ended.exception()
        assert isinstance(error, aiomqtt.MqttError)
        assert f"refuses messages on {topic}: Not authorized" in explain(error, endpoint)[0]
        return False


async def may_read(broker: Mosquitto, etc: Path, user: str, topic: str) -> bool:
    """Whether a retained message comes. One under the user's own name that comes behind it says that it does not."""
    own = f"appliance/{user}/command/end"
    async with client(broker, etc, user) as reader, asyncio.timeout(PATIENCE):
        await reader.subscribe([(topic, 1), (own, 1)])
        await reader.publish(own, b"end", qos=1)
        async for message in reader.messages:
            return str(message.topic) == topic
    raise AssertionError("the broker ended it")


FLEET, OTHER_FLEET = "fleet/plant/meta/timestamp.json", "fleet/other/meta/timestamp.json"
REPORT, RESULT, ASKED = "appliance/box-7/deployment/parts", "appliance/box-7/result/a/b", "appliance/box-7/command/x"
RIGHTS = {
    "box-7": ({FLEET, ASKED}, {REPORT, RESULT, ASKED}),
    "box-8": (set(), set()),
    "operator": ({FLEET, REPORT, RESULT, ASKED}, {FLEET, ASKED}),
    "acme": ({REPORT}, set()),
    "dashboard": ({RESULT}, set()),
}
"""User -> what it may read and write of box 7 and the fleet."""


@pytest.mark.parametrize("user", RIGHTS)
async def test_each_may_do_what_the_page_says_and_nothing_else(shared: Mosquitto, etc: Path, user: str) -> None:
    readable, writable = RIGHTS[user]
    for topic in (FLEET, OTHER_FLEET, REPORT, RESULT, ASKED):
        assert await may_write(shared, etc, user, topic) is (topic in writable), topic
    for writer, topic in (("operator", FLEET), ("box-7", REPORT), ("box-7", RESULT), ("operator", ASKED)):
        assert await may_write(shared, etc, writer, topic)
        assert await may_read(shared, etc, user, topic) is (topic in readable), topic


async def test_the_operators_tools_do_with_those_rights(shared: Mosquitto, etc: Path, tmp_path: Path) -> None:
    settings = msgspec.convert(tomllib.loads(blocks("toml")[0]), FleetSettings, strict=True)
    assert (settings.mqtt.url, settings.name) == ("mqtts://broker.example", "plant")
    mqtt = msgspec.structs.replace(settings.mqtt, url=f"mqtts://127.0.0.1:{shared.port}")
    (tmp_path / mqtt.password_file).write_text(f"{PASSWORD}\n")
    (tmp_path / mqtt.ca_file).write_bytes((etc / "certs" / "ca.pem").read_bytes())
    fleet = SomeFleet(tmp_path, msgspec.structs.replace(settings, mqtt=mqtt))
    fleet.add(b"x" * 200_000)
    fleet.sign(1)
    await synchronise(fleet, Watcher())
    held = {}
    async with client(shared, etc, "box-7") as device, asyncio.timeout(PATIENCE):
        await device.subscribe("fleet/plant/#", qos=1)
        async for message in device.messages:
            held[str(message.topic)] = message.payload
            if len(held) == len(fleet.retained()):
                break
    assert held == fleet.retained()


def test_the_configuration_of_a_device_is_one() -> None:
    config = msgspec.convert(tomllib.loads(blocks("toml")[1]), Config, strict=True)
    assert config.mqtt.username == config.device.name == "box-7"
    assert config.fleet.name == "plant"


def test_numbers_on_the_page_are_those_of_the_code() -> None:
    assert f"max_packet_size {MAX_PACKET_BYTES}\n" in SECTION
    assert SILENT_SECONDS == 3 * REPORT_SECONDS == 180
    assert "has said nothing for 3 minutes" in SECTION
    assert f"are given {PATIENCE_SECONDS:.0f} s when all others have answered" in SECTION
