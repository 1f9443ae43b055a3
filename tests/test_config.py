"""Reading the configuration: what is accepted, what is refused and how the message helps."""

import socket
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from appliance.cli.commands import cli
from appliance.cli.options import effective
from appliance.config import (
    MAX_CONFIG_BYTES,
    CameraConfig,
    Config,
    DeviceConfig,
    HandlerConfig,
    PeerConfig,
    ZipperConfig,
    check_config,
    device_name,
    load_config,
)
from appliance.errors import ConfigError
from appliance.frame import MAX_NAME, is_name


def written(directory: Path, text: str) -> Path:
    path = directory / "appliance.toml"
    path.write_text(text, "utf-8")
    return path


def test_no_file_is_all_defaults() -> None:
    config = load_config(None)
    assert config == Config()
    assert [camera.url for camera in config.cameras] == ["synthetic:"]
    check_config(config)


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "")) == Config()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[mqtt]\nurll = 'mqtt://broker'", ["urll", "$.mqtt", "docs/configuration.md"]),
        ("[mqqt]", ["mqqt"]),
        ("[zipper]\nport = '7801'", ["$.zipper.port", "int"]),
        ("[zipper]\nport = 70000", ["$.zipper.port", "65535"]),
        ("[zipper]\nport = 7801.0", ["$.zipper.port"]),
        ("[[cameras]]\nfps = 0", ["$.cameras[0].fps"]),
        ("[[cameras]]\nname = 'ok'\n[[cameras]]\nname = 'Front Door'", ["$.cameras[1].name"]),
        ("[[cameras]]\ntag = 0x1_0000_0000", ["$.cameras[0].tag"]),
        ("[[handlers]]\nname = 'x'", ["$.handlers[0]", "path"]),
        ("[handlers]\npath = 'x'", ["$.handlers", "array"]),
        ("[[handlers]]\npath = 'x'\n[handlers.settings]\ntop = 5", ["$.handlers[0].settings.top", "str", "quotes"]),
        ("[[handlers]]\npath = 'x'\n'settings[...]' = 1", ["settings[...]"]),
        ("handlers = 1", ["$.handlers", "array"]),
        ("[log]\nlevel = 'loud'", ["$.log.level", "loud"]),
        ("[[zipper.peers]]\nname = 'a'\ncredential = 'x'\nroles = ['king']", ["$.zipper.peers[0].roles[0]", "king"]),
        ("[mqtt\n", ["not valid TOML", "line 1"]),
        ("[[cameras]]\n" * 17, ["$.cameras", "16"]),
    ],
)
def test_a_mistake_is_told_with_file_and_key(text: str, told: list[str], tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    for part in [str(path), *told]:
        assert part in str(error.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: .*No such file"):
        load_config(tmp_path / "absent.toml")


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


def test_what_is_not_text_is_told(tmp_path: Path) -> None:
    path = tmp_path / "appliance.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(path)


def test_the_size_is_bounded(tmp_path: Path) -> None:
    load_config(written(tmp_path, "#" * MAX_CONFIG_BYTES))
    with pytest.raises(ConfigError, match=f"appliance.toml: larger than {MAX_CONFIG_BYTES} bytes"):
        load_config(written(tmp_path, "#" * (MAX_CONFIG_BYTES + 1)))


def test_a_file_without_end_is_not_read_to_its_end() -> None:
    with pytest.raises(ConfigError, match="/dev/zero: larger than"):
        load_config(Path("/dev/zero"))


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_file_is_a_configuration_or_a_config_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(data)
    try:
        assert isinstance(load_config(path), Config)
    except ConfigError as error:
        assert str(path) in str(error)


# --- paths --------------------------------------------------------------------------------------------------

EVERY_PATH = """
[device]
state_dir = "state"
[[cameras]]
name = "file"
url = "videos/food.mp4"
[[cameras]]
name = "network"
url = "rtsp://192.0.2.20/1"
[[cameras]]
name = "device"
url = "/dev/video0"
[[handlers]]
path = "handlers/classify"
[handlers.settings]
model = "m.tflite"
"second.labels" = "l.txt"
top = "5"
[inference]
delegate = "libedgetpu.so.1"
[inference.twins]
aa = "twin.tflite"
[[zipper.peers]]
name = "gate"
credential = "file:secrets/gate"
roles = ["source"]
[link]
certificate = "cert.pem"
credential = "file:/etc/secret"
[mqtt]
ca_file = "~/ca.pem"
password = "file:secrets/mqtt"
"""


def test_relative_paths_are_beside_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    written(tmp_path, EVERY_PATH)
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("appliance.toml"))
    assert config.device.state_dir == f"{tmp_path}/state"
    assert [camera.url for camera in config.cameras] == [
        f"{tmp_path}/videos/food.mp4",
        "rtsp://192.0.2.20/1",
        "/dev/video0",
    ]
    (handler,) = config.handlers
    assert handler.path == f"{tmp_path}/handlers/classify"
    assert handler.settings == {"model": f"{tmp_path}/m.tflite", "second.labels": f"{tmp_path}/l.txt", "top": "5"}
    assert config.inference.delegate == "libedgetpu.so.1"  # the dynamic linker knows where
    assert config.inference.twins == {"aa": f"{tmp_path}/twin.tflite"}
    assert config.zipper.peers[0].credential == f"file:{tmp_path}/secrets/gate"
    assert config.link.certificate == f"{tmp_path}/cert.pem"
    assert config.link.credential == "file:/etc/secret"
    assert config.mqtt.ca_file == f"{home}/ca.pem"
    assert config.mqtt.password == f"file:{tmp_path}/secrets/mqtt"


def test_what_is_empty_stays_empty(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, "[mqtt]\nca_file = ''\npassword = 'plain'"))
    assert (config.mqtt.ca_file, config.mqtt.password) == ("", "plain")
    assert config.device.state_dir == config.link.certificate == ""


# --- what no single key shows -------------------------------------------------------------------------------


def peer(name: str, credential: str = "a-secret-of-sixteen") -> PeerConfig:
    return PeerConfig(name=name, credential=credential, roles=("sink",))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (Config(cameras=(CameraConfig(), CameraConfig(url="x.mp4"))), "cameras: the name 'camera' is given twice"),
        (Config(zipper=ZipperConfig(peers=(peer("a"), peer("a")))), "zipper.peers: the name 'a' is given twice"),
        (Config(cameras=(CameraConfig(name="door", tag=0xF000),)), "camera door: tag 0xf000 is reserved"),
        (Config(cameras=(CameraConfig(tag=0xFFFF),)), "0xffff is reserved"),
        (Config(zipper=ZipperConfig(peers=(peer("a", "fifteen-letters"),))), "credential of a is shorter than 16"),
    ],
)
def test_contradictions_are_told(config: Config, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_config(config)
    assert told in str(error.value)


def test_a_secret_is_never_in_the_message() -> None:
    with pytest.raises(ConfigError) as error:
        check_config(Config(zipper=ZipperConfig(peers=(peer("a", "short-s3cret"),))))
    assert "s3cret" not in str(error.value)


def test_what_is_allowed_passes() -> None:
    cameras = (CameraConfig(tag=0xEFFF), CameraConfig(name="other", tag=0x1_0000))
    peers = (peer("a", "exactly-16-chars"), peer("b", "file:x"))
    handlers = (HandlerConfig(path="a"), HandlerConfig(path="a"))  # their names are in their manifests
    check_config(Config(cameras=cameras, handlers=handlers, zipper=ZipperConfig(peers=peers)))


# --- what is shown of it ------------------------------------------------------------------------------------

SECRETS = """
[[zipper.peers]]
name = "gate"
credential = "credential-s3cret"
roles = ["source"]
[[zipper.peers]]
name = "door"
credential = "file:door.secret"
roles = ["sink"]
[link]
credential = "link-s3cret"
[mqtt]
username = "me"
password = "password-s3cret"
"""


def test_the_effective_configuration_is_printed_without_secrets(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["config", "--config", str(written(tmp_path, SECRETS))])
    assert result.exit_code == 0, result.output
    assert "s3cret" not in result.output
    shown = load_config(written(tmp_path, result.output))
    assert shown.zipper.peers[1].credential == f"file:{tmp_path}/door.secret"
    assert (shown.mqtt.username, shown.mqtt.spool_mb) == ("me", Config().mqtt.spool_mb)


def test_a_level_of_the_log_in_a_file_is_in_force_also_where_it_is_the_default(tmp_path: Path) -> None:
    """Without a file, `run` is quieter."""
    file = written(tmp_path, '[log]\nlevel = "info"')
    assert effective(file, None, quiet="warning").log.level == "info"
    assert effective(None, None, quiet="warning").log.level == "warning"
    assert effective(file, "error", quiet="warning").log.level == "error"


# --- the device's name --------------------------------------------------------------------------------------


def test_the_configured_name_is_used() -> None:
    assert device_name(Config(device=DeviceConfig(name="line-3"))) == "line-3"


@pytest.mark.parametrize("name", ["Line 3", "-x", "x" * (MAX_NAME + 1), "a/b", "+"])
def test_a_configured_name_that_is_none_is_told(name: str) -> None:
    with pytest.raises(ConfigError, match=r"device\.name"):
        device_name(Config(device=DeviceConfig(name=name)))


@given(st.text(max_size=100) | st.from_regex(r"[A-Za-z0-9._-]{0,80}", fullmatch=True))
def test_a_name_can_be_made_of_any_host_name(host: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: host)
        assert is_name(device_name(Config()))


def test_a_host_name_is_recognised_in_the_devices_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Kitchen.Pi.local")
    assert device_name(Config()) == "kitchen-pi-local"


def test_a_box_of_a_fleet_needs_the_fleets_broker(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mqtt\.url: missing"):
        check_config(load_config(written(tmp_path, '[fleet]\nname = "shops"\nroot = "root.json"\n')))


def test_what_is_no_name_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"Expected lower-case letters, digits, - and _ - at `\$\.fleet\.groups\[0\]`"
    ):
        load_config(written(tmp_path, '[fleet]\ngroups = ["Tills!"]\n'))
