from pathlib import Path
from typing import Any

import pytest

from appliance.config import MqttConfig
from appliance.errors import ConfigError
from appliance.mqtt.endpoint import MAX_SECRET_BYTES, Endpoint, endpoint_of, tls_context


@pytest.mark.parametrize(
    ("config", "endpoint"),
    [
        ({"url": "mqtt://broker"}, Endpoint("broker", 1883)),
        ({"url": "mqtt://[::1]:1884/"}, Endpoint("::1", 1884)),
        ({"url": "mqtts://broker", "ca_file": "ca.pem"}, Endpoint("broker", 8883, tls=True, ca_file="ca.pem")),
        (
            {"url": "mqtts://broker:1", "username": "u", "password": "p"},
            Endpoint("broker", 1, tls=True, username="u", password="p"),
        ),
    ],
)
def test_endpoints(config: dict[str, str], endpoint: Endpoint) -> None:
    assert endpoint_of(MqttConfig(**config)) == endpoint


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"url": ""}, "mqtt.url"),
        ({"url": "broker"}, "mqtt.url"),
        ({"url": "http://broker"}, "mqtt.url"),
        ({"url": "mqtt://"}, "mqtt.url"),
        ({"url": "mqtt://broker:99999"}, "mqtt.url"),
        ({"url": "mqtt://broker:x"}, "mqtt.url"),
        ({"url": "mqtt://broker/path"}, "mqtt.url"),
        ({"url": "mqtt://broker?a=b"}, "mqtt.url"),
        ({"url": "mqtt://user:secret@broker"}, "mqtt.url"),
        ({"url": "mqtt://user:secret@broker:x"}, "mqtt.url"),
        ({"url": "user:secret@broker"}, "mqtt.url"),
        ({"url": "mqtt://user:secret/@broker"}, "mqtt.url"),
        ({"url": "mqtt://broker", "password": "p"}, "mqtt.password"),
        ({"url": "mqtt://broker", "username": "u", "password": "file:/does/not/exist"}, "mqtt.password"),
        ({"url": "mqtt://broker", "ca_file": "ca.pem"}, "mqtt.ca_file"),
    ],
)
def test_errors_name_the_key_and_never_a_secret(config: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: ") as caught:
        endpoint_of(MqttConfig(**config))
    assert "secret" not in str(caught.value)


def test_a_password_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    config = MqttConfig(url="mqtt://broker", username="u", password=f"file:{file}")
    file.write_text("pass word \r\n")
    endpoint = endpoint_of(config)
    assert endpoint.password == "pass word"
    assert "pass word" not in repr(endpoint)
    assert str(endpoint) == "broker:1883"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"mqtt\.password"):
        endpoint_of(config)
    file.write_bytes(b"x" * (MAX_SECRET_BYTES + 1))
    with pytest.raises(ConfigError, match="not a password"):
        endpoint_of(config)


def test_a_ca_file_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    for content in (None, "no certificate"):
        if content:
            file.write_text(content)
        with pytest.raises(ConfigError, match=r"mqtt\.ca_file"):
            tls_context(Endpoint("broker", 8883, tls=True, ca_file=str(file)))
