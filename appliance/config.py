"""The configuration: one typed value, read from TOML, every error naming the file and the key.

``docs/configuration.md`` documents each key; ``appliance config`` prints the effective value.
"""

import re
import socket
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from appliance.errors import ConfigError
from appliance.frame import MAX_NAME, MAX_TAG, NAME_PATTERN, RESERVED_TAGS, is_name

_NAME = rf"^{NAME_PATTERN.pattern}\Z"
_NO_NAME = f"Expected `str` matching regex {_NAME!r}"
_SETTINGS = "settings[...]"
Name = Annotated[str, msgspec.Meta(pattern=_NAME, description="lower-case letters, digits, - and _")]
Tag = Annotated[int, msgspec.Meta(ge=0, le=MAX_TAG)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]

MAX_PREFIX = 128
_PREFIX = re.compile(r"[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)*")

MAX_CONFIG_BYTES = 256 << 10
DEFAULT_CAMERA_TAG = 1


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all sections: a key that is not known is an error, never ignored."""


class DeviceConfig(Section, frozen=True, kw_only=True):
    name: str = ""
    """Name in topics and logs; empty: the host's name."""
    state_dir: str = ""
    """Keys, certificates, spool; empty: $APPLIANCE_STATE, or ~/.local/state/appliance."""
    capsules: bool = True
    """Keep the frames around a handler's failure, pictures included, for ``appliance handler replay``."""


class LogConfig(Section, frozen=True, kw_only=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class CameraConfig(Section, frozen=True, kw_only=True):
    name: Name = "camera"
    url: str = "synthetic:"
    """``synthetic:``, a file, a directory of images, ``rtsp://…``, ``/dev/video0``, ``picamera2:``."""
    tag: Tag = DEFAULT_CAMERA_TAG
    fps: Annotated[float, msgspec.Meta(gt=0, le=240)] | None = None
    """Cap on frames per second; None: what the camera gives."""
    width: Annotated[int, msgspec.Meta(ge=16, le=8192)] | None = None
    height: Annotated[int, msgspec.Meta(ge=16, le=8192)] | None = None
    quality: Annotated[int, msgspec.Meta(ge=1, le=100)] = 85
    """Of the JPEG encoder, where the camera does not encode itself."""
    lossless: bool = False
    """Deliver every frame, as fast as the handlers take them, instead of the newest."""
    loop: bool = False
    frames: Positive | None = None
    """End after so many frames."""
    stall_seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 10.0
    """No frame for so long: the camera counts as frozen and is opened again."""


class HandlerConfig(Section, frozen=True, kw_only=True):
    path: str
    """A directory with a handler.toml."""
    name: Name | None = None
    """Another name than the manifest's: the same handler twice."""
    observes: tuple[Tag, ...] | None = None
    """Other tags than the manifest's."""
    settings: dict[str, str] = {}
    """Settings by name; ``model`` and ``labels`` (or ``NAME.model``, ``NAME.labels``) replace files of its models."""


class InferenceConfig(Section, frozen=True, kw_only=True):
    runtime: Literal["litert", "tflite"] = "litert"
    delegate: str = ""
    """Shared library of a delegate, e.g. ``libedgetpu.so.1``; empty: CPU."""
    delegate_options: dict[str, str] = {}
    twins: dict[str, str] = {}
    """SHA-256 of a CPU model -> file of its delegate twin (``…_edgetpu.tflite``)."""
    threads: Annotated[int, msgspec.Meta(ge=1, le=8)] = 1
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=600)] = 10.0


class PeerConfig(Section, frozen=True, kw_only=True):
    """Somebody who may connect to the zipper."""

    name: Name
    credential: str
    """A secret of at least 16 characters, or ``file:PATH`` to read it from."""
    roles: tuple[Literal["source", "handler", "sink"], ...]
    observes: tuple[Tag, ...] = ()
    emits: tuple[Tag, ...] = ()


class ZipperConfig(Section, frozen=True, kw_only=True):
    host: str = "127.0.0.1"
    port: Port = 0
    """0: any free port (a single box); fix it where sources are elsewhere."""
    peers: tuple[PeerConfig, ...] = ()
    max_connections: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 32
    ring_mb: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 32


class LinkConfig(Section, frozen=True, kw_only=True):
    """Where the zipper is, for `appliance source` on another machine; empty: on this box, by its state directory."""

    host: str = ""
    port: Port = 0
    certificate: str = ""
    """File with the zipper's certificate (``zipper-cert.pem`` of its state directory)."""
    credential: str = ""
    """The secret of this source, or ``file:PATH`` to read it from."""


CommandName = Literal["reload", "snapshot", "log", "restart"]


class MqttConfig(Section, frozen=True, kw_only=True):
    url: str = ""
    """``mqtt://host[:1883]`` or ``mqtts://host[:8883]``; empty: start a private broker."""
    username: str = ""
    password: str = ""
    """A password, or ``file:PATH`` to read it from."""
    ca_file: str = ""
    prefix: str = "appliance"
    format: Literal["json", "cbor"] = "json"
    spool_mb: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 64
    tags: tuple[Tag, ...] = ()
    """Tags of remote stream functions to publish; what handlers emit is published as their manifests say."""
    stats_seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 10.0
    log_level: Literal["off", "debug", "info", "warning", "error"] = "off"
    """The least severe events of the log that are published, too."""
    commands: tuple[CommandName, ...] = ()
    """Requests that are carried out; who may send them is for the broker's access list to say."""


class FleetConfig(Section, frozen=True, kw_only=True):
    """Where this box gets handlers from, beside those of the configuration."""

    name: str = ""
    """Of the fleet; empty: nothing is deployed to this box over MQTT."""
    root: str = ""
    """The fleet's root metadata (``root.json``) that this box trusts to begin with."""
    groups: Annotated[tuple[Name, ...], msgspec.Meta(max_length=16)] = ()
    """Groups this box is in, the weakest first; ``all`` is before them."""
    prefix: str = "fleet"
    quota_mb: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1024
    """Disk space for bundles, those under way included."""
    canary_frames: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 30
    """A new version goes into service when it has handled so many frames beside the old one …"""
    canary_seconds: Annotated[float, msgspec.Meta(gt=0, le=86_400)] = 60.0
    """… or has been there for so long: not every handler has many frames to handle."""
    trial_seconds: Annotated[float, msgspec.Meta(gt=0, le=86_400)] = 600.0
    """So long after that it is on trial: a box that starts three times meanwhile goes back to the version before."""


class HomeAssistantConfig(Section, frozen=True, kw_only=True):
    discovery: bool = False
    """Announce device, cameras and handlers to Home Assistant."""
    prefix: str = "homeassistant"
    """Home Assistant's discovery prefix; its birth message is expected on ``<prefix>/status``."""


class Config(Section, frozen=True, kw_only=True):
    device: DeviceConfig = DeviceConfig()
    log: LogConfig = LogConfig()
    cameras: Annotated[tuple[CameraConfig, ...], msgspec.Meta(max_length=16)] = (CameraConfig(),)
    handlers: Annotated[tuple[HandlerConfig, ...], msgspec.Meta(max_length=64)] = ()
    inference: InferenceConfig = InferenceConfig()
    zipper: ZipperConfig = ZipperConfig()
    link: LinkConfig = LinkConfig()
    mqtt: MqttConfig = MqttConfig()
    fleet: FleetConfig = FleetConfig()
    homeassistant: HomeAssistantConfig = HomeAssistantConfig()


MIN_CREDENTIAL = 16


def in_words(error: msgspec.ValidationError, settings: Iterable[object]) -> str:
    """What msgspec says, where it is true and of no help: of a text that is no name, and of a setting, without its key.

    ``settings``: all that the file has, tables or not.
    """
    text = str(error).replace(_NO_NAME, "Expected lower-case letters, digits, - and _")
    tables = [table for table in settings if isinstance(table, dict)]
    wrong = [key for table in tables for key, value in table.items() if not isinstance(value, str)]
    if not wrong or _SETTINGS not in text:
        return text
    return text.replace(_SETTINGS, f"settings.{wrong[0]}") + "; put its value in quotes"


def load_config(path: Path | None) -> Config:
    """Read a configuration file (None: all defaults); ConfigError names the file, the key and what is wrong.

    Relative paths in the file are relative to the file's directory.
    """
    if path is None:
        return Config()
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        if len(data) > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes")
        document = tomllib.loads(data.decode())
        config = msgspec.convert(document, Config, strict=True)
    except OSError as error:
        raise ConfigError(f"{path}: the configuration cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    except msgspec.ValidationError as error:
        text = in_words(error, _settings_in(document))
        raise ConfigError(f"{path}: {text}; docs/configuration.md describes every key") from error
    try:
        return _beside(config, path.absolute().parent)
    except RuntimeError as error:  # pathlib's, for "~somebody" who does not exist
        raise ConfigError(f"{path}: {error}") from error


def _settings_in(document: dict[str, Any]) -> list[object]:
    handlers = document.get("handlers")
    return [each.get("settings") for each in handlers if isinstance(each, dict)] if isinstance(handlers, list) else []


def check_config(config: Config) -> None:
    """ConfigError for what no single key shows."""
    _unique("cameras", [camera.name for camera in config.cameras])
    _unique("zipper.peers", [peer.name for peer in config.zipper.peers])
    if config.fleet.name and not config.mqtt.url:
        raise ConfigError("mqtt.url: missing; a box with fleet.name needs the fleet's broker")
    for camera in config.cameras:
        if camera.tag in RESERVED_TAGS:
            raise ConfigError(f"camera {camera.name}: tag {camera.tag:#x} is reserved for the system")
    for peer in config.zipper.peers:
        if not peer.credential.startswith("file:") and len(peer.credential) < MIN_CREDENTIAL:
            raise ConfigError(
                f"zipper.peers: the credential of {peer.name} is shorter than {MIN_CREDENTIAL} characters"
            )


def device_name(config: Config) -> str:
    """The configured name, or one made of the host's."""
    if config.device.name:
        if not is_name(config.device.name):
            raise ConfigError(f"device.name: {config.device.name!r} is not lower-case letters, digits, - and _")
        return config.device.name
    letters = "".join(c if c.isascii() and c.isalnum() else "-" for c in socket.gethostname().lower())
    return letters.strip("-")[:MAX_NAME].strip("-") or "appliance"


def check_prefix(key: str, prefix: str) -> None:
    """ConfigError for a prefix that no topic can be made of."""
    if len(prefix) > MAX_PREFIX or not _PREFIX.fullmatch(prefix):
        raise ConfigError(f"{key}: {prefix!r} must be 1 to {MAX_PREFIX} letters, digits, - _ . and single / between")


def _unique(key: str, names: list[str]) -> None:
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ConfigError(f"{key}: the name {min(twice)!r} is given twice")


def _beside(config: Config, directory: Path) -> Config:
    """Paths of files relative to the directory of the configuration."""

    def file(path: str) -> str:
        return str(directory / Path(path).expanduser()) if path else path

    def secret(text: str) -> str:
        return f"file:{file(text[5:])}" if text.startswith("file:") else text

    def settings(given: dict[str, str]) -> dict[str, str]:
        return {key: file(v) if key.split(".")[-1] in ("model", "labels") else v for key, v in given.items()}

    replace = msgspec.structs.replace
    return replace(
        config,
        device=replace(config.device, state_dir=file(config.device.state_dir)),
        cameras=tuple(
            replace(camera, url=camera.url if ":" in camera.url else file(camera.url)) for camera in config.cameras
        ),
        handlers=tuple(
            replace(handler, path=file(handler.path), settings=settings(handler.settings))
            for handler in config.handlers
        ),
        inference=replace(
            config.inference, twins={digest: file(twin) for digest, twin in config.inference.twins.items()}
        ),
        zipper=replace(
            config.zipper,
            peers=tuple(replace(peer, credential=secret(peer.credential)) for peer in config.zipper.peers),
        ),
        link=replace(config.link, certificate=file(config.link.certificate), credential=secret(config.link.credential)),
        mqtt=replace(config.mqtt, ca_file=file(config.mqtt.ca_file), password=secret(config.mqtt.password)),
        fleet=replace(config.fleet, root=file(config.fleet.root)),
    )
