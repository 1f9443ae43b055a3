"""What docs/mqtt.md shows is true."""

import asyncio
import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiomqtt
import jsonschema
import msgspec
import pytest
from mosquitto import PATIENCE, Mosquitto
from publishing import Answers, frame, publisher

from appliance.config import MqttConfig, load_config
from appliance.discovery import MAX_DOCUMENTS, REFRESH_SECONDS
from appliance.manifest import SensorSpec, load_manifest
from appliance.mqtt.endpoint import endpoint_of
from appliance.mqtt.homeassistant import MAX_STATE_TEXT, Box, documents
from appliance.mqtt.ledger import GONE_LOOKS
from appliance.mqtt.private_broker import MAX_PACKET_BYTES
from appliance.mqtt.retained import MAX_STATE_BYTES
from appliance.mqtt.topics import Topics
from appliance.sandbox.spec import HandlerSpec

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "mqtt.md").read_text("utf-8")


HOME_ASSISTANT = PAGE.partition("\n## Home Assistant\n")[2].partition("\n## ")[0]


def blocks(language: str, text: str = PAGE) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_example_of_a_result_is_one() -> None:
    example, *_ = blocks("json")
    schema = json.loads((DOCS / "result.schema.json").read_text("utf-8"))
    jsonschema.validate(json.loads(example), schema)
    for key in schema["properties"]:
        assert f"`{key}`" in PAGE


def test_the_broker_of_the_example_takes_the_largest_result() -> None:
    assert f"max_packet_size {MAX_PACKET_BYTES}\n" in PAGE


def test_the_configuration_of_the_example_is_one() -> None:
    example = blocks("toml")[0]
    settings = dict(re.findall(r'^(\w+) = "(.*)"$', example, re.MULTILINE))
    assert set(settings) == {"url", "username", "password", "ca_file"}
    endpoint = endpoint_of(MqttConfig(**{**settings, "password": "secret"}))
    assert (endpoint.host, endpoint.port, endpoint.tls) == ("broker.example", 8883, True)


async def test_the_access_list_lets_a_device_say_all_it_has_to_say(tmp_path: Path, mosquitto_binary: str) -> None:
    (tmp_path / "acl").write_text("\n".join(blocks("acl")))
    passwords = tmp_path / "passwords"
    passwords.touch()
    for user in ("box", "dashboard", "box2"):
        command = ["mosquitto_passwd", "-b", str(passwords), user, "secret"]
        await (await asyncio.create_subprocess_exec(*command)).wait()
    settings = ("allow_anonymous false", f"password_file {passwords}", f"acl_file {tmp_path / 'acl'}")
    with Mosquitto(tmp_path / "broker", *settings) as broker:
        login = {"username": "box", "password": "secret"}
        dashboard = aiomqtt.Client("127.0.0.1", broker.port, username="dashboard", password="secret")
        async with dashboard, asyncio.timeout(PATIENCE):
            await dashboard.subscribe("appliance/#", qos=1)
            async with publisher(broker.url, tmp_path / "spool.db", stats_seconds=0.1, **login) as publishing:
                for topic in (publishing.topics.camera("camera"), publishing.topics.handler("parts")):
                    publishing.set_retained(topic, {"state": "x"})
                publishing.offer(frame(0), Answers().of(0))
                topics = set()
                async for message in dashboard.messages:
                    topics.add(str(message.topic).removeprefix("appliance/box/"))
                    if len(topics) == 5:
                        break
        assert topics == {"status", "camera/camera", "handler/parts", "result/camera/parts", "stats"}
        stranger = {**login, "username": "box2"}
        async with publisher(broker.url, tmp_path / "other.db", **stranger) as publishing:
            async with asyncio.timeout(PATIENCE):
                while "refuses messages on appliance/box/" not in publishing.stats.connection.error:
                    await asyncio.sleep(0.01)
            assert not publishing.stats.connection.connected


@contextmanager
def broker_of_the_page(directory: Path, *users: str) -> Iterator[Mosquitto]:
    """A broker with the access list of the page; each user's password is ``secret``."""
    (directory / "acl").write_text("\n".join(blocks("acl")))
    passwords = directory / "passwords"
    passwords.touch()
    for user in users:
        subprocess.run(["mosquitto_passwd", "-b", passwords, user, "secret"], check=True)
    settings = ("allow_anonymous false", f"password_file {passwords}", f"acl_file {directory / 'acl'}")
    with Mosquitto(directory / "broker", *settings) as broker:
        yield broker


async def test_the_access_list_lets_a_device_and_home_assistant_find_each_other(
    tmp_path: Path, mosquitto_binary: str
) -> None:
    topics = [f"homeassistant/device/box/{rest}" for rest in ("config", "parts/config")]
    with broker_of_the_page(tmp_path, "box", "homeassistant", "box2") as broker:
        home, box = (
            aiomqtt.Client("127.0.0.1", broker.port, username=user, password="secret")
            for user in ("homeassistant", "box")
        )
        also = {"also": ("homeassistant",), "password": "secret"}
        async with home, box, asyncio.timeout(PATIENCE):
            await home.subscribe("homeassistant/#", qos=1)
            await box.subscribe("homeassistant/status", qos=1)
            await home.publish("homeassistant/status", "online", qos=1)
            assert (await anext(box.messages)).payload == b"online"
            async with publisher(broker.url, tmp_path / "spool.db", username="box", **also) as publishing:
                for topic in topics:
                    publishing.set_retained(topic, {})
                heard = [str((await anext(home.messages)).topic) for _ in range(3)]
            assert heard == ["homeassistant/status", *topics]
            async with publisher(broker.url, tmp_path / "other.db", username="box2", **also) as publishing:
                publishing.set_retained(topics[0], {})
                while "refuses messages on" not in publishing.stats.connection.error:
                    await asyncio.sleep(0.01)


def test_what_home_assistant_is_told_is_as_the_page_has_it(tmp_path: Path) -> None:
    settings, sensors = blocks("toml", HOME_ASSISTANT)
    path = tmp_path / "appliance.toml"
    path.write_text(settings)
    config = load_config(path)
    assert config.homeassistant.discovery
    assert len(msgspec.convert(tomllib.loads(sensors)["sensors"], tuple[SensorSpec, ...])) == 3
    (example,) = blocks("json", HOME_ASSISTANT)
    manifest = load_manifest(DOCS.parent / "handlers" / "motion")
    motion = HandlerSpec(
        name="motion",
        version=manifest.version,
        module=b"",
        abi=manifest.abi,
        observes=manifest.observes,
        emits={emit.tag: emit.publish for emit in manifest.emits},
        models=(),
        settings={},
        limits=manifest.limits,
        sensors=manifest.sensors[:1],
    )
    box = Box(Topics("appliance", "box-7"), config.homeassistant.prefix, "0.1.0")
    (topic,) = re.findall(r"^\| `(\S+ \S+/<handler>/config)`", HOME_ASSISTANT, re.MULTILINE)
    for placeholder, value in {"discovery prefix": "homeassistant", "device": "box-7", "handler": "motion"}.items():
        topic = topic.replace(f"<{placeholder}>", value)
    assert documents(box, {"camera": 1}, [motion], [])[topic] == json.loads(example)
    assert f"`<discovery prefix>/{box.birth_topic.partition('/')[2]}`" in HOME_ASSISTANT
    assert f"At most {MAX_DOCUMENTS - 1} handlers" in HOME_ASSISTANT
    assert f"{MAX_STATE_BYTES >> 10} KiB of entities" in HOME_ASSISTANT
    assert f"some {GONE_LOOKS * REFRESH_SECONDS:.0f} s after" in HOME_ASSISTANT
    assert f"first {MAX_STATE_TEXT} characters" in HOME_ASSISTANT


@pytest.mark.parametrize("event", re.findall(r"`event=(\w+)`", PAGE))
def test_events_that_are_named_exist(event: str) -> None:
    package = Path(__file__).parents[2] / "appliance"
    sources = [*package.glob("*.py"), *(package / "mqtt").glob("*.py")]
    assert any(f'"event={event} ' in source.read_text("utf-8") for source in sources)
