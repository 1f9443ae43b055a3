"""The configuration: one typed value, read from TOML, every error naming the file and the key.

``docs/configuration.md`` documents each key; ``appliance config`` prints the effective value.
"""

from typing import Annotated, Literal

import msgspec

from appliance.frame import MAX_TAG, NAME_PATTERN

Name = Annotated[
    str, msgspec.Meta(pattern=f"^{NAME_PATTERN.pattern}$", description="lower-case letters, digits, - and _")
]
Tag = Annotated[int, msgspec.Meta(ge=0, le=MAX_TAG)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]

MAX_CONFIG_BYTES = 256 << 10
DEFAULT_CAMERA_TAG = 1


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all sections: a key that is not known is an error, never ignored."""


class DeviceConfig(Section, frozen=True, kw_only=True):
    name: str = ""
    """Name in topics and logs; empty: the host's name."""
    state_dir: str = ""
    """Keys, certificates, spool; empty: $APPLIANCE_STATE, or ~/.local/state/appliance."""


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
    stats_seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 10.0


class Config(Section, frozen=True, kw_only=True):
    device: DeviceConfig = DeviceConfig()
    log: LogConfig = LogConfig()
    cameras: Annotated[tuple[CameraConfig, ...], msgspec.Meta(max_length=16)] = (CameraConfig(),)
    handlers: Annotated[tuple[HandlerConfig, ...], msgspec.Meta(max_length=64)] = ()
    inference: InferenceConfig = InferenceConfig()
    zipper: ZipperConfig = ZipperConfig()
    mqtt: MqttConfig = MqttConfig()
