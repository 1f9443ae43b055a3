"""A handler as it will run: its manifest, its files and what the operator changed, read and checked once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from appliance.config import HandlerConfig, InferenceConfig
from appliance.device.reading import open_plain
from appliance.errors import ConfigError, HandlerError
from appliance.inference.model import ModelSpec, digest_of
from appliance.manifest import (
    MANIFEST_FILE,
    MAX_FILES_BYTES,
    MAX_LABELS_BYTES,
    MAX_MODULE_BYTES,
    CommandUse,
    EngineName,
    Limits,
    Manifest,
    ModelUse,
    SensorSpec,
    load_manifest,
    own_file,
)
from appliance.sandbox.messages import CommandSpec

MAX_MODELS = 16
MAX_LABELS = 32_768
MAX_SETTINGS = 64
MAX_SETTING_BYTES = 4096


@dataclass(frozen=True, slots=True)
class HandlerModel:
    """A model a handler may use."""

    name: str
    """What its code asks for."""
    model: ModelSpec
    labels: tuple[str, ...]
    """Line by line, so that the index is the class; empty where there is no file of labels."""
    fit: Literal["stretch", "letterbox"]
    ahead: bool
    """Run it on every observed picture before the guest asks."""


@dataclass(frozen=True, slots=True)
class HandlerSpec:
    """Everything a handler runs with; a change of any of it is another handler."""

    name: str
    version: str
    module: bytes
    abi: str
    observes: tuple[int, ...]
    emits: Mapping[int, bool]
    """Tag -> whether frames with it are published."""
    models: tuple[HandlerModel, ...]
    settings: Mapping[str, str]
    limits: Limits
    engine: EngineName = "wasm3"
    guest_models: int = 0
    """How many models the module may bring itself."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    command: CommandSpec | None = None
    sensors: tuple[SensorSpec, ...] = ()
    """What Home Assistant shows of its published values."""


def load_handler(config: HandlerConfig, inference: InferenceConfig) -> HandlerSpec:
    """Read a handler's directory and apply the operator's changes.

    Reads whole files (a model is up to 256 MiB, for its digest): call it off the event loop. Raises HandlerError
    for what the handler's author must mend, ConfigError for what the operator must, ModelError for a model file
    that cannot be read; each names the file or the key.
    """
    directory = Path(config.path).expanduser()
    manifest = load_manifest(directory)
    name = config.name or manifest.name
    if len(manifest.models) > MAX_MODELS:
        raise HandlerError(f"{directory / MANIFEST_FILE}: more than {MAX_MODELS} models")
    settings, files = _overrides(name, manifest, config.settings)
    return HandlerSpec(
        name=name,
        version=manifest.version,
        module=_read(own_file(directory, manifest.module), MAX_MODULE_BYTES),
        abi=manifest.abi,
        engine=manifest.engine,
        observes=manifest.observes if config.observes is None else config.observes,
        emits={emit.tag: emit.publish for emit in manifest.emits},
        models=tuple(
            _model(name, directory, use, files, inference, alone=len(manifest.models) == 1) for use in manifest.models
        ),
        settings=settings,
        limits=manifest.limits,
        guest_models=manifest.guest_models,
        files=_files(directory, manifest.files),
        command=_command(manifest),
        sensors=manifest.sensors,
    )


def _files(directory: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    left = MAX_FILES_BYTES
    for name in names:
        files[name] = _read(own_file(directory, name), left)
        left -= len(files[name])
    return files


def _command(manifest: Manifest) -> CommandSpec | None:
    use = manifest.command or (CommandUse() if manifest.abi == "command" else None)
    return CommandSpec(list(use.arguments), use.frame) if use else None


def _overrides(name: str, manifest: Manifest, given: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """(settings for the guest, files by ``NAME.model`` and ``NAME.labels``)."""
    names = [use.name for use in manifest.models]
    files = {f"{model}.{what}" for model in names for what in ("model", "labels")}
    short = {what: f"{names[0]}.{what}" for what in ("model", "labels")} if len(names) == 1 else {}
    settings, chosen = dict(manifest.settings), {}
    for key, value in given.items():
        if key in settings:
            settings[key] = value
        elif short.get(key, key) in files:
            chosen[short.get(key, key)] = value
        else:
            known = ", ".join(sorted({*settings, *files, *short})) or "it has none"
            raise ConfigError(f"handler {name!r} has no setting {key!r}; known: {known}")
    if len(settings) > MAX_SETTINGS:
        raise HandlerError(f"handler {name!r} has more than {MAX_SETTINGS} settings")
    for key, value in settings.items():
        if len(value.encode()) > MAX_SETTING_BYTES:
            raise ConfigError(f"setting {key!r} of handler {name!r} is longer than {MAX_SETTING_BYTES} bytes")
    return settings, chosen


def _model(
    handler: str, directory: Path, use: ModelUse, files: Mapping[str, str], inference: InferenceConfig, *, alone: bool
) -> HandlerModel:
    path = _file(directory, use.file, files.get(f"{use.name}.model"))
    if path is None:
        key = f"{handler}.model" if alone else f"{handler}.{use.name}.model"
        raise ConfigError(f"model {use.name!r} of handler {handler!r} has no file; name one with --set {key}=PATH")
    labels = _file(directory, use.labels, files.get(f"{use.name}.labels"))
    model = model_spec(path, digest_of(path), inference, unit_range=use.unit_range)
    return HandlerModel(use.name, model, read_labels(labels) if labels else (), use.fit, use.ahead)


def model_spec(path: Path, digest: str, inference: InferenceConfig, *, unit_range: bool = False) -> ModelSpec:
    """How a model is run, whoever brings it: as the configuration says, with its twin where it has one."""
    twin = inference.twins.get(digest)
    return ModelSpec(
        path=path,
        digest=digest,
        runtime=inference.runtime,
        threads=inference.threads,
        delegate=inference.delegate,
        delegate_options=tuple(sorted(inference.delegate_options.items())),
        twin=Path(twin).expanduser() if twin else None,
        unit_range=unit_range,
    )


def _file(directory: Path, own: str | None, chosen: str | None) -> Path | None:
    """The operator's file, else the handler's own, which lies beside its manifest."""
    if chosen:
        return Path(chosen).expanduser()
    return own_file(directory, own) if own else None


def read_labels(path: Path) -> tuple[str, ...]:
    """Labels line by line; HandlerError where the file is none of labels."""
    try:
        labels = _read(path, MAX_LABELS_BYTES).decode().splitlines()
    except UnicodeDecodeError as error:
        raise HandlerError(f"{path}: is not UTF-8 text; labels are one per line") from error
    if len(labels) > MAX_LABELS:
        raise HandlerError(f"{path}: {len(labels)} labels are over the limit of {MAX_LABELS}")
    return tuple(label.strip() for label in labels)


def _read(path: Path, limit: int) -> bytes:
    try:
        with open_plain(path) as file:
            data = file.read(limit + 1)
    except OSError as error:
        remedy = "`appliance handler build` makes it" if path.suffix == ".wasm" else "the handler needs it"
        raise HandlerError(f"{path}: cannot be read: {error.strerror}; {remedy}") from error
    if len(data) > limit:
        raise HandlerError(f"{path}: larger than {limit} bytes")
    return data
