"""What docs/mqtt.md shows is true."""

import asyncio
import json
import re
from pathlib import Path

import aiomqtt
import jsonschema
import pytest
from mosquitto import PATIENCE, Mosquitto
from publishing import Answers, frame, publisher

from appliance.config import MqttConfig
from appliance.mqtt.endpoint import endpoint_of
from appliance.mqtt.private_broker import MAX_PACKET_BYTES

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "mqtt.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_example_of_a_result_is_one() -> None:
    (example,) = blocks("json")
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


@pytest.mark.parametrize("event", re.findall(r"`event=(\w+)`", PAGE))
def test_events_that_are_named_exist(event: str) -> None:
    package = Path(__file__).parents[2] / "appliance"
    sources = [*package.glob("*.py"), *(package / "mqtt").glob("*.py")]
    assert any(f'"event={event} ' in source.read_text("utf-8") for source in sources)
