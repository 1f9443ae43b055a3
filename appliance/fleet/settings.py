"""``fleet.toml``: what a fleet's directory says of itself. Errors name the file and the key.

It lives in git with the rest of the directory, so no secret is in it: the broker's password is in a file of its own.
Who may push there may change it, so it cannot name any file of the operator's machine: a broker gets what it holds.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from appliance.config import MqttConfig, Name, Section, check_prefix
from appliance.deploy.fleet_topics import DEFAULT_CHUNK_BYTES, MAX_CHUNK_BYTES, MIN_CHUNK_BYTES, FleetTopics
from appliance.device.durable import write_durably
from appliance.device.reading import open_plain
from appliance.errors import ConfigError
from appliance.mqtt.endpoint import endpoint_of

SETTINGS_FILE = "fleet.toml"
MAX_SETTINGS_BYTES = 64 << 10
PASSWORD_FILE_VARIABLE = "APPLIANCE_FLEET_PASSWORD_FILE"  # noqa: S105 - the name of a variable
"""Environment variable of the operator's: a file anywhere, which counts instead of ``mqtt.password_file``."""

Days = Annotated[int, msgspec.Meta(ge=1, le=3650)]


class FleetMqtt(Section, frozen=True, kw_only=True):
    """The broker that operator and devices share."""

    url: str = ""
    """``mqtt://host[:1883]`` or ``mqtts://host[:8883]``."""
    username: str = ""
    password_file: str = ""
    """Name of a file with the password, in the fleet's directory itself."""
    ca_file: str = ""
    """Relative to the fleet's directory."""
    prefix: str = "appliance"
    """``mqtt.prefix`` of the devices: where their reports are."""


class Expiry(Section, frozen=True, kw_only=True):
    """Days that a signature of each role lasts. A fleet whose timestamp has expired takes nothing new."""

    root: Days = 1095
    targets: Days = 365
    developers: Days = 365
    snapshot: Days = 365
    timestamp: Days = 30


class FleetSettings(Section, frozen=True, kw_only=True):
    name: Name
    prefix: str = "fleet"
    """Topics of the fleet begin with ``prefix/name``."""
    chunk_kb: Annotated[int, msgspec.Meta(ge=MIN_CHUNK_BYTES >> 10, le=MAX_CHUNK_BYTES >> 10)] = (
        DEFAULT_CHUNK_BYTES >> 10
    )
    """KiB of a file in one message."""
    mqtt: FleetMqtt = FleetMqtt()
    expiry: Expiry = Expiry()

    @property
    def topics(self) -> FleetTopics:
        return FleetTopics(self.prefix, self.name)

    @property
    def chunk_bytes(self) -> int:
        return self.chunk_kb << 10


def load_settings(directory: Path) -> FleetSettings:
    """ConfigError names the file, the key and what is wrong."""
    path = directory / SETTINGS_FILE
    try:
        with open_plain(path) as file:
            data = file.read(MAX_SETTINGS_BYTES + 1)
        if len(data) > MAX_SETTINGS_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_SETTINGS_BYTES} bytes")
        settings = msgspec.convert(tomllib.loads(data.decode()), FleetSettings, strict=True)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: there is no such file, so {directory} is not a fleet's directory; "
            f"name it with -C or $APPLIANCE_FLEET, or make one with `appliance fleet init`"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}; docs/fleet.md describes every key") from error
    try:
        return checked(settings)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def checked(settings: FleetSettings) -> FleetSettings:
    """The same; ConfigError for what no single type shows."""
    _ = settings.topics
    check_prefix("mqtt.prefix", settings.mqtt.prefix)
    name = settings.mqtt.password_file
    if name and (Path(name).name != name or name == ".." or "\0" in name):
        raise ConfigError(f"mqtt.password_file: {name!r} is no name of a file in the fleet's directory; {_ELSEWHERE}")
    if settings.mqtt.url:
        endpoint_of(MqttConfig(url=settings.mqtt.url))
    return settings


_ELSEWHERE = f"empty the key, and name a file that is elsewhere in ${PASSWORD_FILE_VARIABLE}"


def save_settings(directory: Path, settings: FleetSettings) -> None:
    write_durably(directory / SETTINGS_FILE, encode_settings(settings))


def encode_settings(settings: FleetSettings) -> bytes:
    """Every key, so that whoever looks sees what there is."""
    import tomli_w  # noqa: PLC0415 - only the tools write TOML

    return tomli_w.dumps(msgspec.to_builtins(settings)).encode()


def mqtt_config(settings: FleetSettings, directory: Path, environment: Mapping[str, str]) -> MqttConfig:
    """As the appliance's MQTT client wants it; paths are made absolute. ConfigError for a password behind a link."""
    mqtt = settings.mqtt

    def beside(path: str) -> str:
        return str(directory / Path(path).expanduser()) if path else ""

    elsewhere = environment.get(PASSWORD_FILE_VARIABLE, "")
    if not elsewhere and mqtt.password_file and (directory / mqtt.password_file).is_symlink():
        raise ConfigError(
            f"{directory / SETTINGS_FILE}: mqtt.password_file: {directory / mqtt.password_file} is a link, "
            f"and may lead to any file; {_ELSEWHERE}"
        )
    file = Path(elsewhere).expanduser().absolute() if elsewhere else directory / mqtt.password_file
    password = f"file:{file}" if elsewhere or mqtt.password_file else ""
    return MqttConfig(
        url=mqtt.url, username=mqtt.username, password=password, ca_file=beside(mqtt.ca_file), prefix=mqtt.prefix
    )
