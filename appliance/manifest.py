"""A handler's manifest, ``handler.toml``: what it is, what it observes and emits, and what it may use.

Deny by default: a tag, a model or a budget that is not named here is not the handler's.
"""

import os
import tomllib
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec

from appliance.config import Name, Section, Tag, in_words
from appliance.device.reading import open_plain
from appliance.errors import HandlerError
from appliance.frame import RESERVED_TAGS

MANIFEST_FILE = "handler.toml"
MAX_MANIFEST_BYTES = 64 << 10
MAX_MODULE_BYTES = 8 << 20
MAX_LABELS_BYTES = 256 << 10
MAX_FILES = 16
MAX_FILES_BYTES = 8 << 20
"""Of all files of a handler together: they are sent to its worker in one message, with the module."""
MAX_ARGUMENTS = 32
MAX_SENSORS = 16
COMMAND = "command"
"""The ABI that has files and arguments."""

FileName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")]
"""A plain file name beside the manifest: no directories, nothing hidden."""
_VERSION = r"^[0-9]+\.[0-9]+\.[0-9]+(?:[-+][0-9A-Za-z.-]{1,40})?\Z"
_NO_VERSION = f"Expected `str` matching regex {_VERSION!r}"
Version = Annotated[str, msgspec.Meta(pattern=_VERSION)]

ValuePath = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_]{1,64}(?:\.[A-Za-z0-9_]{1,64}){0,7}\Z")]
"""Keys with dots between, as there are in published values."""
DeviceClass = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9_]{0,32}\Z")]

AbiName = Literal["native", "yomo", "bindgen", "command"]
EngineName = Literal["wasm3", "wasmtime"]
_CHOICES = {"`$.abi`": get_args(AbiName), "`$.engine`": get_args(EngineName)}
"""By place in an error of msgspec's, which does not say what there is to choose from."""


class EmitSpec(Section, frozen=True, kw_only=True):
    """A tag the handler may emit."""

    tag: Tag
    publish: bool = True
    """Whether frames with this tag go to MQTT as results (other handlers may observe them either way)."""


class ModelUse(Section, frozen=True, kw_only=True):
    """A model the handler may use, by the name its code asks for."""

    name: Name
    file: FileName | None = None
    """None: the operator must name one (``--set HANDLER.model=PATH``)."""
    labels: FileName | None = None
    fit: Literal["stretch", "letterbox"] = "stretch"
    ahead: bool = True
    """Run every observed picture through it before the guest asks; false for one that seldom asks."""
    unit_range: bool = False
    """Feed a float32 model samples from 0 to 1; most were trained on -1 to 1. Others are not affected."""


class CommandUse(Section, frozen=True, kw_only=True):
    """How a WASI program is called for each frame, where ``abi`` is ``command``."""

    arguments: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=MAX_ARGUMENTS)] = (
        "handler",
        "{frame}",
    )
    """``argv``. ``{frame}`` is the path of the frame's file; ``{source}``, ``{seq}`` and ``{tag}`` are the frame's."""
    frame: FileName = "frame.jpg"
    """Name of that file. ``.jpg`` is the picture as it came, ``.png``, ``.bmp`` and ``.ppm`` are made of it; any other
    ending gives the frame's bytes as they are."""


class SensorSpec(Section, frozen=True, kw_only=True):
    """One thing of the published values that Home Assistant shows."""

    name: Name
    path: ValuePath
    """Where it is in the value: ``label``, ``counts.cat``."""
    kind: Literal["sensor", "binary_sensor"] = "sensor"
    """``binary_sensor``: on where the value is true."""
    tag: Tag | None = None
    """Of the values it is in; not given: the first that is published."""
    title: Annotated[str, msgspec.Meta(max_length=64)] = ""
    unit: Annotated[str, msgspec.Meta(max_length=16)] = ""
    device_class: DeviceClass = ""
    """One of Home Assistant's: ``temperature``, ``motion`` …"""


MAX_DEADLINE_MS = 60_000
MAX_MEMORY_MB = 256
MAX_GAS_MILLIONS = 1_000_000


class Limits(Section, frozen=True, kw_only=True):
    deadline_ms: Annotated[int, msgspec.Meta(ge=1, le=MAX_DEADLINE_MS)] = 1000
    """Time of the guest's own per frame; waiting for the host does not count."""
    memory_mb: Annotated[int, msgspec.Meta(ge=1, le=MAX_MEMORY_MB)] = 16
    """Linear memory of the guest."""
    gas: Annotated[int, msgspec.Meta(ge=1, le=MAX_GAS_MILLIONS)] | None = None
    """Millions of instructions per frame; not given: about as many as fit in the deadline on this machine."""
    host_calls: Annotated[int, msgspec.Meta(ge=1, le=500_000)] = 10_000
    """Calls of host functions per frame."""
    emits_per_second: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 2000
    """Frames it may emit, on average; a second's worth at once."""
    emit_kb_per_second: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 32_768
    """KiB of payload it may emit, likewise."""
    log_lines_per_second: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 20
    """Lines of log, likewise; further ones are dropped and counted."""


class Manifest(Section, frozen=True, kw_only=True):
    name: Name
    version: Version
    description: str = ""
    abi: AbiName = "native"
    """How the module is called: docs/handler-abi.md. Whatever it is, a module may import from every ABI."""
    engine: EngineName = "wasm3"
    module: FileName = "handler.wasm"
    observes: tuple[Tag, ...]
    emits: tuple[EmitSpec, ...] = ()
    models: tuple[ModelUse, ...] = ()
    guest_models: Annotated[int, msgspec.Meta(ge=0, le=8)] = 0
    """How many models the module may bring itself (in its code or its files), as guests of other systems do."""
    files: Annotated[tuple[FileName, ...], msgspec.Meta(max_length=MAX_FILES)] = ()
    """Files beside the manifest that the module may open, where its ABI has files."""
    command: CommandUse | None = None
    sensors: Annotated[tuple[SensorSpec, ...], msgspec.Meta(max_length=MAX_SENSORS)] = ()
    settings: dict[str, str] = {}
    limits: Limits = Limits()


def load_manifest(directory: Path) -> Manifest:
    """Read ``handler.toml`` of a handler's directory; HandlerError names the file and the key."""
    path = directory / MANIFEST_FILE
    try:
        with open_plain(path) as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
        if len(data) > MAX_MANIFEST_BYTES:
            raise HandlerError(f"{path}: larger than {MAX_MANIFEST_BYTES} bytes")
        document = tomllib.loads(data.decode("utf-8"))
        manifest = msgspec.convert(document, Manifest, strict=True)
    except OSError as error:
        raise HandlerError(
            f"{path}: cannot be read: {error.strerror}; a handler is a directory with a {MANIFEST_FILE}"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise HandlerError(f"{path}: not valid TOML: {error}") from error
    except msgspec.ValidationError as error:
        text = in_words(error, [document.get("settings")]).replace(_NO_VERSION, "Expected three numbers, like 1.0.0")
        known = "".join(f"; known: {', '.join(names)}" for place, names in _CHOICES.items() if place in text)
        raise HandlerError(f"{path}: {text}{known}") from error
    _check(manifest, path)
    return manifest


def own_file(directory: Path, name: str) -> Path:
    """A file that the manifest names. A link could have the handler read, and publish, any file of the box."""
    path = directory / name
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(directory)):
        raise HandlerError(f"{path}: is a link out of the handler's directory; copy the file into it")
    return path


def _check(manifest: Manifest, path: Path) -> None:
    """What no type says; HandlerError."""
    for key, given in (("command", manifest.command is not None), ("files", bool(manifest.files))):
        if given and manifest.abi != COMMAND:
            raise HandlerError(f'{path}: `{key}` is for programs; it needs abi = "{COMMAND}"')
    if manifest.command and manifest.command.frame in manifest.files:
        raise HandlerError(f"{path}: `command.frame` and `files` both name {manifest.command.frame}")
    for emit in manifest.emits:
        if emit.tag in RESERVED_TAGS:
            raise HandlerError(f"{path}: tag {emit.tag:#x} in `emits` is reserved for the system")
    published = [emit.tag for emit in manifest.emits if emit.publish]
    for sensor in manifest.sensors:
        if not published or sensor.tag not in (None, *published):
            raise HandlerError(f"{path}: sensor {sensor.name!r} is of a tag that is not published; see `emits`")
    if not manifest.observes:
        raise HandlerError(f"{path}: `observes` names no tag, so the handler would never run")
