import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config import MqttConfig
from appliance.errors import ConfigError
from appliance.fleet.settings import (
    Expiry,
    FleetMqtt,
    FleetSettings,
    checked,
    encode_settings,
    load_settings,
    mqtt_config,
    save_settings,
)

names = st.from_regex(r"[a-z0-9]([a-z0-9_-]{0,20}[a-z0-9])?", fullmatch=True)
days = st.integers(1, 3650)
texts = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20)
settings = st.builds(
    FleetSettings,
    name=names,
    prefix=names,
    chunk_kb=st.integers(1, 60),
    mqtt=st.builds(
        FleetMqtt,
        url=st.sampled_from(["", "mqtt://broker.example", "mqtts://broker.example:8884"]),
        username=texts,
        password_file=names,
        ca_file=texts,
        prefix=names,
    ),
    expiry=st.builds(Expiry, root=days, targets=days, developers=days, snapshot=days, timestamp=days),
)


@given(written=settings)
def test_settings_are_read_as_they_were_written(
    written: FleetSettings, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("fleet")
    save_settings(directory, written)
    assert load_settings(directory) == written
    assert tomllib.loads(encode_settings(written).decode())["name"] == written.name


@given(data=st.binary(max_size=200))
def test_any_file_is_settings_or_a_clear_error(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("fleet")
    (directory / "fleet.toml").write_bytes(data)
    try:
        checked(load_settings(directory))
    except ConfigError as error:
        assert "fleet.toml" in str(error)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "missing required field `name`"),
        ('name = "Shops"', "$.name"),
        ('name = "shops"\nprefix = "a b"', "fleet.prefix"),
        ('name = "shops"\nchunk_kb = 61', "$.chunk_kb"),
        ('name = "shops"\nchunk = 3', "unknown field `chunk`"),
        ('name = "shops"\n[mqtt]\npassword = "secret"', "unknown field `password`"),
        ('name = "shops"\n[mqtt]\nurl = "broker"', "mqtt.url"),
        ('name = "shops"\n[mqtt]\nprefix = "#"', "mqtt.prefix"),
        ('name = "shops"\n[mqtt]\npassword_file = "/etc/shadow"', "mqtt.password_file: '/etc/shadow' is no name of a"),
        ('name = "shops"\n[mqtt]\npassword_file = "keys/root.pem"', "$APPLIANCE_FLEET_PASSWORD_FILE"),
        ('name = "shops"\n[mqtt]\npassword_file = ".."', "mqtt.password_file"),
        ('name = "shops"\n[mqtt]\npassword_file = "~/.netrc"', "mqtt.password_file"),
        ('name = "shops"\n[expiry]\nroot = 0', "$.expiry.root"),
        ("name =", "not valid TOML"),
        ("#" * (65 << 10), "larger than"),
    ],
)
def test_errors_name_the_file_and_the_key(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "fleet.toml").write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_settings(tmp_path)
    assert str(tmp_path / "fleet.toml") in str(raised.value)
    assert said in str(raised.value)


def test_a_directory_without_settings_or_with_one_for_a_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="appliance fleet init"):
        load_settings(tmp_path)
    (tmp_path / "fleet.toml").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(tmp_path)


def test_the_brokers_files_are_beside_the_settings(tmp_path: Path) -> None:
    mqtt = FleetMqtt(url="mqtts://broker.example", username="operator", password_file="pw", ca_file="/etc/ca.pem")
    assert mqtt_config(FleetSettings(name="shops", mqtt=mqtt), tmp_path, {}) == MqttConfig(
        url="mqtts://broker.example", username="operator", password=f"file:{tmp_path / 'pw'}", ca_file="/etc/ca.pem"
    )
    assert mqtt_config(FleetSettings(name="shops"), tmp_path, {}) == MqttConfig()
    assert FleetSettings(name="shops", chunk_kb=2).chunk_bytes == 2048


def test_a_link_from_git_leads_to_no_file_that_a_broker_is_sent(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "pw").symlink_to("secret")
    shops = FleetSettings(name="shops", mqtt=FleetMqtt(url="mqtt://broker.example", password_file="pw"))
    with pytest.raises(ConfigError, match=r"fleet\.toml: mqtt\.password_file: .*/pw is a link.*PASSWORD_FILE"):
        mqtt_config(shops, tmp_path, {})


def test_the_operators_own_variable_names_a_password_anywhere(tmp_path: Path) -> None:
    (tmp_path / "pw").symlink_to("secret")
    environment = {"APPLIANCE_FLEET_PASSWORD_FILE": "/media/safe/broker"}
    for password_file in ("", "pw"):
        shops = FleetSettings(name="shops", mqtt=FleetMqtt(url="mqtt://broker", password_file=password_file))
        assert mqtt_config(shops, tmp_path, environment).password == "file:/media/safe/broker"
